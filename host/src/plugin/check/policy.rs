//! Whether a policy keeps the contract in the course of a run: valid plans, the same ones for the
//! same input, a state that its snapshot carries whole, and no crash at the edges.

use super::model::Model;
use super::play::{Course, Play, Played};
use super::spectra::{self, Damage, Family};
use super::{Bench, Outcome, Sheet, Trouble};
use crate::plugin::FaultClass;
use rand::RngCore;

pub(super) fn check(bench: &Bench, sheet: &mut Sheet) {
    sheet.add("runs", runs(bench));
    sheet.add("determinism", determinism(bench));
    sheet.add("hidden-state", hidden_state(bench));
    sheet.add("snapshot", round_trip(bench));
    sheet.add("snapshot-garbage", garbage(bench));
    if bench.settings.only.is_some() {
        return;
    }
    let seed = bench.settings.seed;
    let even = |count, rows, cols| Model::even(count, rows, cols, Family::PowerLaw, seed);
    sheet.add("empty", edge(bench, even(0, 1, 1), "a model without slices"));
    sheet.add("rank-1", edge(bench, even(1, 1, 1), "one slice with one component"));
    sheet.add("lopsided", edge(bench, even(2, 4096, 1), "slices of 4096 × 1"));
    let mut huge = even(10_000, 64, 64);
    huge.run.steps = 2;
    sheet.add("huge", edge(bench, huge, "10,000 slices of 64 × 64"));
    sheet.add("damaged-spectra", damaged(bench));
    let mut model = even(8, 40, 24);
    model.scatter();
    sheet.add("asleep-flags", edge(bench, model, "components asleep that are not the smallest"));
    let mut model = even(8, 40, 24);
    model.standing.iter_mut().for_each(|s| s.frozen = true);
    sheet.add("all-frozen", edge(bench, model, "every slice frozen"));
    let mut model = even(8, 40, 24);
    model.shrink(0.2);
    sheet.add("budget-met", edge(bench, model, "a model that is under its budget already"));
    sheet.add("budget-0", budgets(bench));
    sheet.add("fates", fates(bench));
}

fn case_model(bench: &Bench, case: u32) -> (Model, Course) {
    let model = Model::random(bench.settings.seed, case);
    (model, Course::Mixed(bench.settings.seed ^ u64::from(case)))
}

/// Plays one case from the start.
fn whole<'a>(bench: &'a Bench<'a>, case: u32) -> Result<Vec<Played>, Box<Trouble>> {
    let (model, course) = case_model(bench, case);
    Play::new(bench, model, course)?.finish()
}

fn runs(bench: &Bench) -> Outcome {
    let (mut runs, mut plans, mut actions, mut refusal) = (0, 0, 0, None);
    for case in bench.cases() {
        runs += 1;
        for played in whole(bench, case).map_err(|t| t.case(case))? {
            match played.answer {
                Ok(plan) => (plans, actions) = (plans + 1, actions + plan.actions.len()),
                Err(text) => refusal = refusal.or(Some((case, text))),
            }
        }
    }
    if let Some((case, text)) = refusal {
        return Err(Trouble::new("a sound model is refused")
            .note()
            .sent(case_model(bench, case).0.describe())
            .back(text)
            .fix("right if it needs what this model lacks; the run ends there")
            .case(case)
            .into());
    }
    Ok(format!("{runs} runs on random models: {plans} plans with {actions} actions, all within the host's rules"))
}

fn determinism(bench: &Bench) -> Outcome {
    for case in bench.cases() {
        let (one, other) = (whole(bench, case), whole(bench, case));
        let (one, other) = (one.map_err(|t| t.case(case))?, other.map_err(|t| t.case(case))?);
        let fix = "draw randomness from the run's seed, and keep what is iterated in order (BTreeMap, not HashMap)";
        same(&one, &other, "two fresh instances differ on the same input", fix)
            .map_err(|t| t.sent(case_model(bench, case).0.describe()).case(case))?;
    }
    Ok("two fresh instances give equal plans and snapshots, run for run".into())
}

fn hidden_state(bench: &Bench) -> Outcome {
    for case in bench.cases() {
        let (model, course) = case_model(bench, case);
        let sent = model.describe();
        let outcome = || {
            let mut first = Play::new(bench, model, course)?;
            while !first.is_over {
                let snapshot = first.step()?.snapshot;
                if first.is_over {
                    break;
                }
                // Restored before every step: nothing may live outside the snapshot.
                let mut second = first.twin(&snapshot)?;
                let at = first.model.step;
                let found = format!("a fresh instance restored before step {at} goes on differently");
                let fix = "put into `snapshot` everything that `decide` remembers";
                same(&[first.step()?], &[second.step()?], &found, fix)?;
            }
            Ok(())
        };
        outcome().map_err(|t: Box<Trouble>| if t.sent.is_empty() { t.sent(sent).case(case) } else { t.case(case) })?;
    }
    Ok("a fresh instance restored from the snapshot goes on as the first one would".into())
}

/// Whether two runs are the same, answer for answer and byte for byte.
fn same(one: &[Played], other: &[Played], found: &str, fix: &str) -> Result<(), Trouble> {
    let Some(at) = (0..one.len().max(other.len())).find(|&i| one.get(i) != other.get(i)) else { return Ok(()) };
    let trouble = Trouble::new(found).fix(fix);
    Err(match (one.get(at), other.get(at)) {
        (Some(a), Some(b)) if a.answer == b.answer => trouble.back(format!(
            "answer {at} is equal, the snapshots are not ({} and {} bytes)",
            a.snapshot.len(),
            b.snapshot.len()
        )),
        (a, b) => trouble.back(format!("first {}, then {}", brief(a), brief(b))),
    })
}

fn brief(played: Option<&Played>) -> String {
    let text = match played.map(|p| &p.answer) {
        None => "nothing".into(),
        Some(Err(text)) => format!("a refusal: {text}"),
        Some(Ok(plan)) => serde_json::to_string(plan).unwrap_or_default(),
    };
    crate::plugin::text::clean(&text, 300)
}

fn round_trip(bench: &Bench) -> Outcome {
    let mut bytes = 0;
    for case in bench.cases() {
        let (model, course) = case_model(bench, case);
        let mut play = Play::new(bench, model, course).map_err(|t| t.case(case))?;
        while !play.is_over {
            let snapshot = play.step().map_err(|t| t.case(case))?.snapshot;
            let again = play.twin(&snapshot).map_err(|t| t.case(case))?.policy().snapshot();
            let again = again.map_err(|f| Trouble::fault("`snapshot` fails after `restore`", &f).case(case))?;
            bytes = bytes.max(snapshot.len());
            if again != snapshot {
                return Err(Trouble::new("the snapshot after `restore` is not the one restored")
                    .sent(format!("{} bytes, after step {}", snapshot.len(), play.model.step - 1))
                    .back(format!("{} bytes", again.len()))
                    .fix("write the state in one fixed order")
                    .case(case)
                    .into());
            }
        }
    }
    Ok(format!("snapshot, restore, snapshot gives the same bytes (at most {bytes})"))
}

fn garbage(bench: &Bench) -> Outcome {
    let mut rng = spectra::rng(bench.settings.seed, "garbage");
    let mut noise = |n: usize| {
        let mut bytes = vec![0; n];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let mut list = vec![vec![], vec![0], vec![0; 8], vec![0xff; 64], noise(7), noise(64), noise(1000), noise(1 << 20)];
    list.push(b"{\"step\": -1e999}".to_vec());
    let model = Model::even(4, 24, 16, Family::PowerLaw, bench.settings.seed);
    let mut first = Play::new(bench, model.clone(), Course::Committed)?;
    let own = first.step()?.snapshot;
    list.push([own.as_slice(), b"more"].concat());
    if !own.is_empty() {
        list.push(own[..own.len() / 2].to_vec());
        list.push(own.iter().map(|b| !b).collect());
    }
    let (mut refused, mut taken) = (0, 0);
    for bytes in list {
        let mut play = Play::new(bench, model.clone(), Course::Committed)?;
        let sent = format!("restore with {} bytes: {}", bytes.len(), hex_head(&bytes));
        match play.policy().restore(&bytes) {
            Err(f) if f.class == FaultClass::Refused => refused += 1,
            Err(f) => return Err(Trouble::fault("`restore` crashes on what is no snapshot", &f).sent(sent).into()),
            Ok(()) => {
                taken += 1;
                play.step().map_err(|t| {
                    let found = format!("`restore` takes what is no snapshot, and then {}", t.found);
                    Trouble { found, ..*t }.sent(sent)
                })?;
            }
        }
    }
    Ok(format!("of {} damaged snapshots {refused} are refused, {taken} taken without harm", refused + taken))
}

fn hex_head(bytes: &[u8]) -> String {
    let head: String = bytes.iter().take(16).map(|b| format!("{b:02x}")).collect();
    if bytes.len() > 16 { head + "…" } else { head }
}

/// A run at an edge: plans within the rules, or a refusal in plain words.
fn edge(bench: &Bench, model: Model, what: &str) -> Outcome {
    let played = Play::new(bench, model, Course::Committed)?.finish()?;
    Ok(match played.iter().find_map(|p| p.answer.as_ref().err()) {
        Some(text) => format!("{what}: refused ({})", crate::plugin::text::clean(text, 120)),
        None => format!("{what}: {} plans within the rules", played.len()),
    })
}

fn damaged(bench: &Bench) -> Outcome {
    let (mut planned, mut refused) = (Vec::new(), Vec::new());
    for damage in Damage::ALL {
        for family in [Family::PowerLaw, Family::Flat] {
            let mut model = Model::even(5, 32, 24, family, bench.settings.seed);
            model.damage = damage;
            let played = Play::new(bench, model, Course::Committed)
                .and_then(|mut p| p.finish())
                .map_err(|t| Trouble { found: format!("spectra with {}: {}", damage.name(), t.found), ..*t })?;
            let list = if played.iter().any(|p| p.answer.is_err()) { &mut refused } else { &mut planned };
            if !list.contains(&damage.name()) {
                list.push(damage.name());
            }
        }
    }
    refused.retain(|r| !planned.contains(r));
    let names = |list: &[&str]| if list.is_empty() { "none".into() } else { list.join(", ") };
    Ok(format!("valid plans with: {}; refused in plain words: {}", names(&planned), names(&refused)))
}

fn budgets(bench: &Bench) -> Outcome {
    let mut said = Vec::new();
    for budget in [0, 1, 500] {
        let mut model = Model::even(6, 32, 24, Family::PowerLaw, bench.settings.seed);
        model.run.budget = budget;
        said.push(edge(bench, model, &format!("budget of {budget} parameters"))?);
    }
    Ok(said.join("; "))
}

/// Twenty plans in a row that come to nothing.
fn fates(bench: &Bench) -> Outcome {
    let mut said = Vec::new();
    for fate in ["rejected", "refused", "failed", "held", "an unknown fate"] {
        let mut model = Model::even(6, 32, 24, Family::PowerLaw, bench.settings.seed);
        model.run.steps = 20;
        let mut play = Play::new(bench, model, Course::Always(fate))?;
        let played = play.finish().map_err(|t| Trouble { found: format!("every plan {fate}: {}", t.found), ..*t })?;
        let end = match played.iter().find(|p| p.answer.is_err()) {
            Some(_) => "refuses",
            None if played.len() < 20 => "stops",
            None => "goes on",
        };
        said.push(format!("{fate}: {end} after {}", played.len()));
    }
    Ok(said.join("; "))
}
