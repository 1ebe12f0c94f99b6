//! The table of a policy.

use super::{Description, call, create, destroy, emit_info, last_error, read};
use crate::abi::{self, Action, Context, Emit, Facts, Info, Instance, Reader, Run, Sized32, Slice, Str, View};
use crate::options::Options;
use crate::plan::Plan;
use crate::policy::{ExportedPolicy, PolicyAdapter, RankPolicy};
use crate::records::{Attribute, Value};
use std::ffi::c_void;

/// The exported symbol of a policy's library.
pub const fn policy_entry<E: ExportedPolicy>() -> abi::Entry {
    abi::Entry {
        magic: abi::MAGIC,
        abi_major: abi::MAJOR,
        struct_size: size_of::<abi::Entry>() as u32,
        min_host_minor: 0,
        abi_minor: abi::MINOR,
        kind: abi::POLICY,
        get: Some(get::<E>),
    }
}

/// The constants of a policy, by the type that exports it.
struct Tables<E>(std::marker::PhantomData<E>);

impl<E: ExportedPolicy> Tables<E> {
    const POLICY: &'static abi::Policy = &abi::Policy {
        struct_size: size_of::<abi::Policy>() as u32,
        reserved: 0,
        create: Some(make::<E>),
        destroy: Some(destroy::<Body<E>>),
        describe: Some(describe::<E>),
        configure: Some(configure::<E>),
        start: Some(start::<E>),
        decide: Some(decide::<E>),
        snapshot: Some(snapshot::<E>),
        restore: Some(restore::<E>),
        last_error: Some(last_error::<Body<E>>),
        get_extension: Some(extension::<E>),
    };
    const REPORT: &'static abi::Report =
        &abi::Report { struct_size: size_of::<abi::Report>() as u32, reserved: 0, report: Some(report::<E>) };
}

type Body<E> = PolicyAdapter<<E as ExportedPolicy>::Policy>;

// SAFETY of all that follows: the host keeps to the header; what it must keep to stands there.

unsafe extern "C" fn get<E: ExportedPolicy>(_host_minor: u32) -> *const c_void {
    std::ptr::from_ref(Tables::<E>::POLICY).cast()
}

unsafe extern "C" fn make<E: ExportedPolicy>(host: *const abi::Host, to: *mut Instance) -> i32 {
    // SAFETY: the host's.
    unsafe { create(host, to, Body::<E>::new) }
}

unsafe extern "C" fn describe<E: ExportedPolicy>(this: Instance, emit: Emit<*const Info>, to: Context) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |policy| {
            let description = Description {
                phases: E::Policy::PHASES.iter().map(|p| p.to_string()).collect(),
                needs: policy.needs(),
                schema: <E::Policy as RankPolicy>::Options::schema(),
                attributes: match E::Policy::REVISES {
                    true => vec![Attribute { name: "revises".into(), value: Value::Flag(true) }],
                    false => Vec::new(),
                },
            };
            emit_info(E::IDENTITY, &description, emit, to);
            Ok(())
        })
    }
}

unsafe extern "C" fn configure<E: ExportedPolicy>(this: Instance, options: Str) -> i32 {
    // SAFETY: the host's.
    unsafe { call::<Body<E>>(this, |policy| Ok(policy.configure(Reader::new(usize::MAX).str(options, "options")?)?)) }
}

unsafe extern "C" fn start<E: ExportedPolicy>(this: Instance, run: *const Run, slices: View<Slice>) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |policy| {
            let reader = &mut Reader::new(usize::MAX);
            Ok(policy.start(read::run(reader, run)?, read::slices(reader, slices)?)?)
        })
    }
}

unsafe extern "C" fn decide<E: ExportedPolicy>(
    this: Instance,
    seen: *const abi::Observation,
    emit: Emit<*const abi::Plan>,
    to: Context,
) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |policy| {
            let seen = read::observation(&mut Reader::new(usize::MAX), seen)?;
            let (plan, needs) = policy.decide(seen)?;
            emit_plan(&plan, &needs, emit, to)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn snapshot<E: ExportedPolicy>(this: Instance, emit: Emit<View<u8>>, to: Context) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |policy| {
            emit(to, View::of(&policy.snapshot()));
            Ok(())
        })
    }
}

unsafe extern "C" fn restore<E: ExportedPolicy>(this: Instance, state: View<u8>) -> i32 {
    // SAFETY: the host's.
    unsafe { call::<Body<E>>(this, |policy| Ok(policy.restore(Reader::new(usize::MAX).list(state, "state")?)?)) }
}

unsafe extern "C" fn report<E: ExportedPolicy>(this: Instance, emit: Emit<Str>, to: Context) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |policy| {
            emit(to, Str::of(&policy.policy().report()));
            Ok(())
        })
    }
}

unsafe extern "C" fn extension<E: ExportedPolicy>(_: Instance, id: Str) -> *const c_void {
    // SAFETY: the host's.
    match unsafe { Reader::new(usize::MAX).str(id, "id") } {
        Ok(abi::REPORT) => std::ptr::from_ref(Tables::<E>::REPORT).cast(),
        _ => std::ptr::null(),
    }
}

/// Hands a plan over; its threshold names a statistic, the contract wants its place in the needs.
fn emit_plan(plan: &Plan, needs: &[String], emit: Emit<*const abi::Plan>, to: Context) -> Result<(), String> {
    let actions: Vec<Action> = plan.actions.iter().map(action).collect();
    let threshold = match &plan.threshold {
        None => None,
        Some(t) => {
            let (need, reason) = (crate::convert::need_of(t, needs)?, Str::of(&t.reason));
            Some(abi::Threshold { need, level: t.level, reason, ..abi::Threshold::new() })
        }
    };
    let requests: Vec<Str> = plan.requests.iter().map(|r| Str::of(r)).collect();
    let facts = Facts::of(&plan.attributes);
    let out = abi::Plan {
        has_predicted: u8::from(plan.predicted.is_some()),
        has_stop: u8::from(plan.stop.is_some()),
        actions: View::of(&actions),
        threshold: threshold.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        predicted: plan.predicted.unwrap_or(0.0),
        requests: View::of(&requests),
        stop: plan.stop.as_deref().map_or(Str::EMPTY, Str::of),
        attributes: facts.view(),
        ..abi::Plan::new()
    };
    emit(to, &out);
    Ok(())
}

fn action(a: &crate::plan::Action) -> Action {
    let (change, n, components) = abi::lend_change(&a.change);
    Action { slice: a.slice.0, change, n, components, reason: Str::of(&a.reason), ..Action::new() }
}
