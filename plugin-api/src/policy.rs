//! What a rank policy implements, and how it becomes a plugin.

use crate::bindings::policy::exports::plastic::rank::{policy as wit, report};
use crate::bindings::policy::plastic::rank::types;
use crate::convert;
use crate::observation::Observation;
use crate::options::{self, Options};
use crate::plan::Plan;
use crate::records::{Run, Slice};
use std::cell::RefCell;
use std::rc::Rc;
use std::thread::LocalKey;

/// A rank policy: told what the model looks like, answers which rank components sleep and wake.
///
/// The host calls `configure`, then `start` (and `restore` where a run is resumed), then `decide`
/// once a step. The same input must give the same plan: draw randomness from [`Run::seed`].
pub trait RankPolicy: Default + 'static {
    /// What it can be told; [`NoOptions`](crate::NoOptions) for nothing.
    type Options: Options;

    /// Phases it serves: `compress`, `train`, `serve`.
    const PHASES: &'static [&'static str] = &["compress"];

    /// Whether it heeds [`Observation::proposed`] and so may follow another policy in a pipeline.
    const REVISES: bool = false;

    /// Takes the options; the host calls it once, before `start`.
    ///
    /// # Errors
    /// A sentence for the operator that names the option and what is allowed.
    fn configure(&mut self, options: Self::Options) -> Result<(), String> {
        let _ = options;
        Ok(())
    }

    /// Statistics the host computes before `decide`, with the options as they are now:
    /// `spectrum:plain`, `spectrum:input`, `spectrum:fisher`.
    fn needs(&self) -> Vec<String> {
        vec!["spectrum:fisher".into()]
    }

    /// A run begins. Run and slices are at hand in every observation too.
    ///
    /// # Errors
    /// A sentence for the operator: why this policy cannot serve this run.
    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), String> {
        let _ = (run, slices);
        Ok(())
    }

    /// Decides on one step. An empty plan holds everything as it is.
    ///
    /// # Errors
    /// A sentence for the operator; the model stays as it is.
    fn decide(&mut self, seen: &Observation) -> Result<Plan, String>;

    /// What it did and why, for people, asked when a run ends; empty for nothing.
    fn report(&self) -> String {
        String::new()
    }

    /// State to carry over a resume or a reload; empty for none.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Puts a snapshot back, after `start`.
    ///
    /// # Errors
    /// A sentence for the operator: why the snapshot cannot be used.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        match state.is_empty() {
            true => Ok(()),
            false => Err("this policy keeps no state".into()),
        }
    }
}

/// Name, version and summary of a plugin; the export macros take them from its `Cargo.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Lower-case name.
    pub name: &'static str,
    /// Semantic version.
    pub version: &'static str,
    /// One sentence for people.
    pub summary: &'static str,
}

/// A policy together with what the contract makes it remember. The tests and the exported plugin
/// both go through it.
pub struct PolicyAdapter<P> {
    policy: P,
    run: Rc<Run>,
    slices: Rc<[Slice]>,
    /// What the policy needs with its options; fixed once a run has begun.
    own: Rc<[String]>,
    /// Statistics of the next observation: the needs, then what the last plan requested.
    needs: Rc<[String]>,
}

impl<P: RankPolicy> PolicyAdapter<P> {
    /// A fresh policy. Installs the panic hook first, so that nothing of it can fail in silence.
    #[allow(clippy::new_without_default, reason = "it has an effect beyond the value")]
    pub fn new() -> Self {
        crate::logging::install_panic_hook();
        let (own, needs) = (Rc::default(), Rc::default());
        PolicyAdapter { policy: P::default(), run: Rc::default(), slices: Rc::default(), own, needs }
    }

    /// The policy itself.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The policy itself, to be changed behind the contract's back in tests.
    #[cfg(test)]
    pub(crate) fn policy_mut(&mut self) -> &mut P {
        &mut self.policy
    }

    /// Statistics of the next observation: the needs, then what the last plan requested.
    pub fn upcoming(&self) -> &[String] {
        &self.needs
    }

    /// Statistics the policy needs now.
    pub fn needs(&self) -> Vec<String> {
        self.policy.needs()
    }

    /// Options as JSON.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn configure(&mut self, options: &str) -> Result<(), String> {
        self.policy.configure(options::parse(options)?)
    }

    /// A run begins.
    ///
    /// # Errors
    /// The policy's own.
    pub fn start(&mut self, run: Run, slices: Vec<Slice>) -> Result<(), String> {
        self.policy.start(&run, &slices)?;
        self.own = self.policy.needs().into();
        self.needs = self.own.clone();
        (self.run, self.slices) = (Rc::new(run), slices.into());
        Ok(())
    }

    /// Fills in what the adapter remembers and asks the policy.
    ///
    /// # Errors
    /// The policy's own.
    pub fn decide(&mut self, mut seen: Observation) -> Result<(Plan, Rc<[String]>), String> {
        if self.slices.len() != seen.states.len() {
            return Err(format!(
                "the observation has {} slices, start announced {}",
                seen.states.len(),
                self.slices.len()
            ));
        }
        seen.run = self.run.clone();
        seen.slices = self.slices.clone();
        seen.needs = self.needs.clone();
        let plan = self.policy.decide(&seen)?;
        self.needs = match plan.requests.is_empty() {
            true => self.own.clone(),
            false => self.own.iter().chain(&plan.requests).cloned().collect(),
        };
        Ok((plan, self.own.clone()))
    }

    /// State to carry over: what the last plan requested, then the policy's own.
    pub fn snapshot(&self) -> Vec<u8> {
        let requested = self.needs.get(self.own.len()..).unwrap_or_default().join("\n");
        let mut bytes = (requested.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(requested.as_bytes());
        bytes.extend(self.policy.snapshot());
        bytes
    }

    /// Puts a snapshot back.
    ///
    /// # Errors
    /// The policy's own.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let bad = || "the snapshot is not one of this plugin".to_owned();
        let (length, rest) = state.split_first_chunk::<4>().ok_or_else(bad)?;
        let (requested, own) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(bad)?;
        let requested = std::str::from_utf8(requested).map_err(|_| bad())?;
        self.policy.restore(own)?;
        let requested = requested.split('\n').filter(|r| !r.is_empty()).map(str::to_owned);
        self.needs = self.own.iter().cloned().chain(requested).collect();
        Ok(())
    }
}

/// Made by [`export_policy!`](crate::export_policy!): where the one instance of a policy lives.
pub trait ExportedPolicy {
    /// The policy.
    type Policy: RankPolicy;
    /// Who it is.
    const IDENTITY: Identity;
    /// The instance.
    fn instance() -> &'static LocalKey<RefCell<PolicyAdapter<Self::Policy>>>;
}

impl<E: ExportedPolicy> wit::Guest for E {
    fn describe() -> wit::Info {
        let id = E::IDENTITY;
        wit::Info {
            name: id.name.into(),
            version: id.version.into(),
            summary: id.summary.into(),
            phases: E::Policy::PHASES.iter().map(|p| p.to_string()).collect(),
            needs: E::instance().with_borrow(|p| p.needs()),
            options_schema: <E::Policy as RankPolicy>::Options::schema(),
            attributes: match E::Policy::REVISES {
                true => vec![types::Attribute { name: "revises".into(), value: types::Value::Flag(true) }],
                false => Vec::new(),
            },
        }
    }

    fn configure(options: String) -> Result<(), String> {
        E::instance().with_borrow_mut(|p| p.configure(&options))
    }

    fn start(run: wit::Run, slices: Vec<wit::Slice>) -> Result<(), String> {
        let slices = slices.into_iter().map(convert::slice).collect();
        E::instance().with_borrow_mut(|p| p.start(convert::run(run), slices))
    }

    fn decide(observation: wit::Observation) -> Result<wit::Plan, String> {
        let seen = convert::observation(observation);
        let (plan, needs) = E::instance().with_borrow_mut(|p| p.decide(seen))?;
        convert::plan(plan, &needs)
    }

    fn snapshot() -> Vec<u8> {
        E::instance().with_borrow(|p| p.snapshot())
    }

    fn restore(state: Vec<u8>) -> Result<(), String> {
        E::instance().with_borrow_mut(|p| p.restore(&state))
    }
}

impl<E: ExportedPolicy> report::Guest for E {
    fn report() -> String {
        E::instance().with_borrow(|p| p.policy().report())
    }
}

/// Makes a [`RankPolicy`] the plugin of this crate.
///
/// Name, version and summary come from `Cargo.toml`; `export_policy!(MyPolicy, name: "short")`
/// gives another name.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        $crate::export_policy!($policy, name: ::core::env!("CARGO_PKG_NAME"));
    };
    ($policy:ty, name: $name:expr) => {
        const _: () = {
            ::std::thread_local! {
                static INSTANCE: ::std::cell::RefCell<$crate::__private::PolicyAdapter<$policy>> =
                    ::std::cell::RefCell::new($crate::__private::PolicyAdapter::new());
            }

            struct Exported;

            impl $crate::__private::ExportedPolicy for Exported {
                type Policy = $policy;
                const IDENTITY: $crate::__private::Identity = $crate::__private::Identity {
                    name: $name,
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    summary: ::core::env!("CARGO_PKG_DESCRIPTION"),
                };
                fn instance()
                -> &'static ::std::thread::LocalKey<::std::cell::RefCell<$crate::__private::PolicyAdapter<$policy>>> {
                    &INSTANCE
                }
            }

            #[cfg(target_arch = "wasm32")]
            $crate::__private::policy::export_policy_world!(Exported with_types_in $crate::__private::policy);

            $crate::__native_entry!(policy_entry, Exported);
        };
    };
}
