//! Laws that most policies obey and that a user will expect. One that does not hold is a note: there
//! are good policies, such as those that look at the order of layers, of which it is not true.

use super::model::Model;
use super::play::{Course, Play};
use super::spectra::Family;
use super::{Bench, Outcome, Sheet, Trouble};
use crate::plugin::contract::{Change, Plan};
use std::collections::BTreeMap;

/// Cases a law is tried on.
const TRIES: usize = 8;
/// Spectra without equal values: between equals a policy may choose as it likes.
const DISTINCT: [Family; 3] = [Family::PowerLaw, Family::NoiseFloor, Family::Geometric];
/// Steps in which a policy should have come to its end.
const MANY: u32 = 40;

/// Whether the law holds, or what happened instead; an error where the policy fails altogether.
type Verdict = Result<Result<(), String>, Box<Trouble>>;

pub(super) fn check(bench: &Bench, sheet: &mut Sheet) {
    sheet.add("law-order", law(bench, "the order of the slices does not matter", order));
    sheet.add("law-scale", law(bench, "spectra four times as large give the same plan", scale));
    sheet.add("law-budget", law(bench, "a larger budget keeps no less awake", budget));
    sheet.add("law-settled", law(bench, "after it has ended a run, one more step changes nothing", settled));
}

/// Tries a law on several models; where it does not hold, `test` answers what happened.
fn law(bench: &Bench, says: &str, test: fn(&Bench, Model) -> Verdict) -> Outcome {
    let mut tried = 0;
    for case in bench.cases().take(TRIES) {
        let model = Model::random_of(&DISTINCT, bench.settings.seed, case);
        let sent = model.describe();
        match test(bench, model).map_err(|t| t.case(case))? {
            Ok(()) => tried += 1,
            Err(what) => {
                return Err(Trouble::new(format!("not so: {says}"))
                    .note()
                    .sent(sent)
                    .back(what)
                    .fix("nothing, if the policy is meant that way")
                    .case(case)
                    .into());
            }
        }
    }
    Ok(format!("{says} ({tried} of {tried} models)"))
}

/// The first plan on a model; none where it is refused.
fn first(bench: &Bench, model: Model) -> Result<Option<Plan>, Box<Trouble>> {
    Ok(Play::new(bench, model, Course::Committed)?.step()?.answer.ok())
}

fn changes(plan: &Plan) -> BTreeMap<u32, Change> {
    plan.actions.iter().map(|a| (a.slice, a.change.clone())).collect()
}

fn said(change: Option<&Change>) -> String {
    change.map_or_else(|| "no change".into(), |c| serde_json::to_string(c).unwrap_or_default())
}

fn order(bench: &Bench, model: Model) -> Verdict {
    let (other, order) = model.shuffled();
    let (Some(a), Some(b)) = (first(bench, model)?, first(bench, other)?) else { return Ok(Ok(())) };
    let back = |(slice, change): (u32, Change)| Some((*order.get(slice as usize)? as u32, change));
    let b: BTreeMap<u32, Change> = changes(&b).into_iter().filter_map(back).collect();
    let a = changes(&a);
    let differs = |slice: &&u32| a.get(*slice) != b.get(*slice);
    Ok(match a.keys().chain(b.keys()).find(differs) {
        None => Ok(()),
        Some(i) => Err(format!("slice {i}: {} in order, {} shuffled", said(a.get(i)), said(b.get(i)))),
    })
}

fn scale(bench: &Bench, model: Model) -> Verdict {
    let mut other = model.clone();
    // A power of two: the products are exact.
    other.scale = 4.0;
    let (Some(a), Some(b)) = (first(bench, model)?, first(bench, other)?) else { return Ok(Ok(())) };
    let (a, b) = (changes(&a), changes(&b));
    let differs = |slice: &&u32| a.get(*slice) != b.get(*slice);
    Ok(match a.keys().chain(b.keys()).find(differs) {
        None => Ok(()),
        Some(i) => Err(format!("slice {i}: {} as it is, {} scaled", said(a.get(i)), said(b.get(i)))),
    })
}

fn budget(bench: &Bench, model: Model) -> Verdict {
    let awake = |share: f64| {
        let mut model = model.clone();
        model.run.budget = (share * model.run.parameters as f64) as u64;
        let mut play = Play::new(bench, model, Course::Committed)?;
        play.finish()?;
        Ok::<u64, Box<Trouble>>(play.model.awake())
    };
    let (less, more) = (awake(0.4)?, awake(0.6)?);
    Ok(match less <= more {
        true => Ok(()),
        false => Err(format!("{less} parameters stay awake with a budget of 40 %, {more} with 60 %")),
    })
}

fn settled(bench: &Bench, mut model: Model) -> Verdict {
    model.run.steps = MANY;
    let mut play = Play::new(bench, model, Course::Committed)?;
    let played = play.finish()?;
    if !played.last().is_some_and(|p| p.answer.as_ref().is_ok_and(|plan| plan.stop.is_some())) {
        return Ok(Ok(()));
    }
    let before = play.model.standing.clone();
    play.step()?;
    let differs = before.iter().zip(&play.model.standing).position(|(a, b)| a != b);
    Ok(match differs {
        None => Ok(()),
        Some(i) => {
            Err(format!("slice {i} goes from {} to {} awake", before[i].awake(), play.model.standing[i].awake()))
        }
    })
}
