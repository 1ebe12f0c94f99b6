//! Plans and verdicts on their way to the model: whatever a policy says about whatever stands, a plan
//! is refused or what comes out keeps the rules.

use super::rare;
use arbitrary::{Result, Unstructured};
use plastic_host::plastic::plan::{Resolved, Subject, resolve};
use plastic_host::plastic::state::{Awake, DENSE};
use plastic_host::plugin::Limits;
use plastic_host::plugin::contract::{
    Action, Attribute, Change, Decision, Metric, Plan, Slice, Threshold, Value, Verdict,
};
use plastic_host::plugin::fuzzing::{check_plan, check_verdict};

/// The bytes are a model and a plan, or a verdict.
pub fn plan(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let _ = match rare(&mut u, 8) {
        Ok(true) => verdict_of(&mut u).map(judged),
        _ => Case::of(&mut u).map(|case| case.check()),
    };
}

fn judged(mut verdict: Verdict) {
    if check_verdict(&mut verdict, &Limits::default()).is_ok() {
        let numbers = |m: &Metric| [Some(m.value), m.low, m.high].into_iter().flatten().all(f64::is_finite);
        assert!(verdict.metrics.iter().all(numbers), "a figure that is none");
        super::shown(&verdict.reason);
        serde_json::to_string(&verdict).expect("a verdict can be kept");
    }
}

/// A model as it stands, and what a policy says.
struct Case {
    slices: Vec<Slice>,
    now: Vec<Subject>,
    budget: u64,
    /// By slice and need; none where it was not delivered.
    spectra: Vec<Vec<Option<Vec<f32>>>>,
    plan: Plan,
}

impl Case {
    fn of(u: &mut Unstructured) -> Result<Case> {
        let count = u.int_in_range(0..=5)?;
        let needs = u.int_in_range(0..=2)?;
        let (mut slices, mut now, mut spectra) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let (rows, cols) = (u.int_in_range(1..=20)?, u.int_in_range(1..=20)?);
            let slice = slice(i, rows, cols);
            let awake = match u.int_in_range(0..=2)? {
                0 => DENSE,
                1 => Awake::First(u.int_in_range(0..=slice.max_rank - 1)?),
                _ => {
                    let list = (0..slice.max_rank).filter(|_| u.arbitrary().unwrap_or_default()).collect::<Vec<_>>();
                    match list.len() as u32 == slice.max_rank {
                        true => DENSE,
                        false => Awake::from_components(list),
                    }
                }
            };
            let mut series = Vec::new();
            for _ in 0..needs {
                series.push(match u.ratio(7, 8)? {
                    true => Some((0..slice.max_rank).map(|_| u.arbitrary()).collect::<Result<Vec<f32>>>()?),
                    false => None,
                });
            }
            spectra.push(series);
            now.push(Subject { awake, frozen: rare(u, 4)? });
            slices.push(slice);
        }
        let budget = if u.arbitrary()? { u.int_in_range(0..=2000)? } else { u.arbitrary()? };
        let plan = plan_of(u, count, needs as u32)?;
        Ok(Case { slices, now, budget, spectra, plan })
    }

    fn resolve(&self, plan: &Plan) -> std::result::Result<Resolved, String> {
        let find = |slice: u32, need: u32| self.spectra.get(slice as usize)?.get(need as usize)?.as_deref();
        resolve(plan, &self.slices, &self.now, self.budget, &find).map_err(|e| e.to_string())
    }

    fn check(self) {
        let needs = self.spectra.first().map_or(0, Vec::len);
        let mut checked = self.plan.clone();
        match check_plan(&mut checked, self.slices.len(), needs, &Limits::default()) {
            Ok(()) => {
                // Nothing but texts is changed, and what passed once passes again.
                assert_eq!(format!("{:?}", changes(&checked)), format!("{:?}", changes(&self.plan)));
                let mut again = checked.clone();
                check_plan(&mut again, self.slices.len(), needs, &Limits::default()).expect("checked before");
                serde_json::to_string(&checked).expect("a plan can be kept");
            }
            Err(why) => super::shown(&why),
        }
        // Also what the first check refuses must do no harm.
        match self.resolve(&self.plan) {
            Err(why) => assert_eq!(self.resolve(&self.plan), Err(why), "another refusal"),
            Ok(resolved) => {
                assert_eq!(self.resolve(&self.plan).as_ref(), Ok(&resolved), "another outcome");
                self.keeps_the_rules(&resolved);
            }
        }
    }

    fn keeps_the_rules(&self, r: &Resolved) {
        let count = self.slices.len();
        assert_eq!((r.awake.len(), r.frozen.len()), (count, count));
        let cost = |a: &Awake, s: &Slice| match a {
            Awake::Dense(_) => u64::from(s.rows) * u64::from(s.cols),
            Awake::First(n) => u64::from(*n) * u64::from(s.rows + s.cols),
            Awake::These(list) => list.len() as u64 * u64::from(s.rows + s.cols),
        };
        let (mut before, mut after) = (0, 0);
        for (i, (s, now)) in self.slices.iter().zip(&self.now).enumerate() {
            let (awake, named) = (&r.awake[i], self.plan.actions.iter().find(|a| a.slice as usize == i));
            (before, after) = (before + cost(&now.awake, s), after + cost(awake, s));
            assert!(awake.is_valid(s.max_rank), "{awake:?} of {}", s.max_rank);
            assert!(awake.is_dense() || awake.rank(s.max_rank) < s.max_rank, "all awake is dense");
            assert_eq!(r.changed.contains(&i), *awake != now.awake);
            assert!(*awake == now.awake || named.is_some() || self.plan.threshold.is_some(), "changed unasked");
            assert!(*awake == now.awake || !now.frozen, "frozen, and changed");
            let expected = match named.map(|a| &a.change) {
                Some(Change::Freeze) => true,
                Some(Change::Thaw) => false,
                _ => now.frozen,
            };
            assert_eq!(r.frozen[i], expected);
            if let Some(Change::SetRank(n)) = named.map(|a| &a.change) {
                assert_eq!(awake.rank(s.max_rank), *n);
            }
        }
        assert!(r.changed.is_sorted());
        assert_eq!(r.parameters, after);
        assert!(after <= self.budget.max(before), "{after} of {}, {before} before", self.budget);
    }
}

/// A plan without its reasons.
type Changes<'a> = (Vec<(u32, &'a Change)>, Option<(u32, f64)>, Option<f64>, &'a [String], &'a [Attribute]);

/// All of a plan but its reasons.
fn changes(p: &Plan) -> Changes<'_> {
    let actions = p.actions.iter().map(|a| (a.slice, &a.change)).collect();
    (actions, p.threshold.as_ref().map(|t| (t.need, t.level)), p.predicted, &p.requests, &p.attributes)
}

pub fn slice(layer: u32, rows: u32, cols: u32) -> Slice {
    Slice {
        name: format!("layers.{layer}"),
        layer,
        kind: "q_proj".into(),
        group: layer,
        rows,
        cols,
        max_rank: rows.min(cols),
        dense_parameters: u64::from(rows) * u64::from(cols),
        component_parameters: u64::from(rows) + u64::from(cols),
        attributes: Vec::new(),
    }
}

/// Mostly small, sometimes anything.
fn number(u: &mut Unstructured, most: u32) -> Result<u32> {
    if u.ratio(15, 16)? { u.int_in_range(0..=most) } else { u.arbitrary() }
}

fn text(u: &mut Unstructured) -> Result<String> {
    if u.ratio(3, 4)? { Ok("why".into()) } else { u.arbitrary() }
}

fn list<T>(u: &mut Unstructured, most: usize, mut one: impl FnMut(&mut Unstructured) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| one(u)).collect()
}

fn plan_of(u: &mut Unstructured, slices: u32, needs: u32) -> Result<Plan> {
    let actions = list(u, 6, |u| {
        let slice = number(u, slices)?;
        let change = match u.int_in_range(0..=7)? {
            0 => Change::SetRank(number(u, 21)?),
            1 => Change::SleepN(number(u, 21)?),
            2 => Change::WakeN(number(u, 21)?),
            3 => Change::Sleep(list(u, 20, |u| number(u, 20))?),
            4 => Change::Wake(list(u, 20, |u| number(u, 20))?),
            5 => Change::Dense,
            6 => Change::Freeze,
            _ => Change::Thaw,
        };
        Ok(Action { slice, change, reason: text(u)? })
    })?;
    let threshold = match rare(u, 3)? {
        true => Some(Threshold { need: number(u, needs)?, level: u.arbitrary()?, reason: text(u)? }),
        false => None,
    };
    let predicted = if rare(u, 4)? { Some(u.arbitrary()?) } else { None };
    let requests = list(u, 2, text)?;
    let stop = if rare(u, 8)? { Some(text(u)?) } else { None };
    Ok(Plan { actions, threshold, predicted, requests, stop, attributes: list(u, 2, attribute)? })
}

fn attribute(u: &mut Unstructured) -> Result<Attribute> {
    let value = match u.int_in_range(0..=5)? {
        0 => Value::Flag(u.arbitrary()?),
        1 => Value::Int(u.arbitrary()?),
        2 => Value::Num(u.arbitrary()?),
        3 => Value::Text(text(u)?),
        4 => Value::Nums(list(u, 4, |u| u.arbitrary())?),
        _ => Value::Texts(list(u, 4, text)?),
    };
    Ok(Attribute { name: text(u)?, value })
}

fn verdict_of(u: &mut Unstructured) -> Result<Verdict> {
    let metrics = list(u, 3, |u| {
        let (name, unit, value) = (text(u)?, text(u)?, u.arbitrary()?);
        Ok(Metric { name, value, unit, higher_is_better: u.arbitrary()?, low: u.arbitrary()?, high: u.arbitrary()? })
    })?;
    let decision = *u.choose(&[Decision::Accept, Decision::Reject, Decision::Abstain])?;
    Ok(Verdict { decision, reason: text(u)?, metrics, attributes: list(u, 3, attribute)? })
}
