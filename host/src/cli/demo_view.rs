//! What a demo looks like: a line a step, with bars on a terminal; a chart and a proof at the end; or
//! one JSON document.

use super::Global;
use super::show::{megabytes, millions};
use crate::plastic::demo::chart::{self, Ink, Row};
use crate::plastic::demo::svg::{self, Panel};
use crate::plastic::demo::{Step, Woken};
use crate::plastic::journal::Fate;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// Characters of a line where the terminal does not say.
const ROOM: usize = 80;

/// What is known before the first step.
#[derive(Debug, Serialize)]
pub struct About {
    /// Id of the base.
    pub base: String,
    /// Names and versions of the policies.
    pub policies: Vec<String>,
    /// The phase they were started in.
    pub phase: String,
    /// Number of slices that may change.
    pub slices: usize,
    /// Parameters in them.
    pub parameters: u64,
    /// Share of them that may be awake.
    pub budget: f64,
    /// Requests at each step.
    pub load: Vec<u32>,
    /// Tokens a second that a request alone on the base sees.
    pub idle_tokens_per_second: f64,
    /// What a policy with the option `min_tokens_per_second` is asked to keep, unless told otherwise.
    pub target_tokens_per_second: f64,
    /// Loss of the base, nats a token.
    #[serde(rename = "base_loss")]
    pub loss: f64,
}

/// The document of --json.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    about: &'a About,
    steps: &'a [Step],
    /// Lowest share awake after a step.
    lowest_awake: f64,
    /// Whether fewer components were awake after some step than before it.
    ranks_fell: bool,
    /// Whether more were, by the policy's will: the waking at the end does not count.
    ranks_rose: bool,
    wake: &'a Woken,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    svg: Option<&'a Path>,
    seconds: f64,
}

/// Shows a demo as it happens.
pub struct View {
    about: About,
    json: bool,
    quiet: bool,
    /// Whether bars are drawn in each line.
    live: bool,
    ink: Ink,
    room: usize,
}

impl View {
    /// For a demo that is about to begin.
    pub fn new(about: About, g: &Global) -> View {
        let text = |name: &str| std::env::var(name).ok();
        let room = text("COLUMNS").and_then(|c| c.parse().ok()).map_or(ROOM, |c: usize| c.clamp(60, 200));
        let live = std::io::stdout().is_terminal();
        View { about, json: g.json, quiet: g.quiet, live, ink: Ink::of_locale(text), room }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.about.load.len()
    }

    fn talks(&self) -> bool {
        !self.json && !self.quiet
    }

    /// What runs on what.
    pub fn opening(&self) {
        let a = &self.about;
        if !self.talks() {
            return;
        }
        let bold = Style::new().bold();
        say!(
            "{bold}{}{bold:#}: {} slices, {} parameters in them; policy {}",
            a.base,
            a.slices,
            millions(a.parameters),
            a.policies.join(self.pick(" → ", " -> ")),
        );
        match a.phase.as_str() {
            "serve" => say!(
                "alone, a request sees {:.0} tokens/s; while it sees less than {:.0}, rank goes to sleep",
                a.idle_tokens_per_second,
                a.target_tokens_per_second
            ),
            _ => say!("not every policy knows the phase serve: ranks follow what the policies watch, such as the loss"),
        }
        if self.live {
            say!("\n{}", header());
        }
    }

    fn pick<'a>(&self, blocks: &'a str, ascii: &'a str) -> &'a str {
        if self.ink == Ink::Blocks { blocks } else { ascii }
    }

    /// A step ended.
    pub fn step(&self, s: &Step) {
        if !self.talks() {
            return;
        }
        match self.live {
            true => say!("{}", self.drawn(s)),
            false => say!("{}", self.plain(s)),
        }
        if matches!(s.fate, Fate::Refused | Fate::Failed) {
            note!("step {}: {}, the model stays as it was: {}", s.step, s.fate.name(), s.reason.replace('\n', " "));
        }
    }

    /// A line without bars.
    fn plain(&self, s: &Step) -> String {
        format!(
            "step {}/{}: load {}, {:.1} % awake, {:.0} tokens/s seen by a request, {:.0} by the model, loss {:.3} ({:+.3}), {}",
            s.step,
            self.steps(),
            s.served.requests,
            100.0 * s.awake,
            s.served.tokens_per_second,
            s.served.throughput,
            s.loss,
            s.loss_increase,
            moved(s)
        )
    }

    /// A line with bars: load yellow, awake green.
    fn drawn(&self, s: &Step) -> String {
        let top = f64::from(self.about.load.iter().copied().max().unwrap_or(1).max(1));
        let colour = |c: AnsiColor| Style::new().fg_color(Some(c.into()));
        let (load, awake) = (colour(AnsiColor::Yellow), colour(AnsiColor::Green));
        let change = match (s.slept, s.woke) {
            (0, 0) => Style::new().dimmed(),
            (slept, woke) if slept > woke => colour(AnsiColor::Blue),
            _ => awake,
        };
        format!(
            "{:>7}  {load}{}{load:#}{:>4}  {awake}{}{awake:#} {:>5.1} %  {:>6.0}  {:>6.0}  {:>6.3} {:>+7.3}  {change}{}{change:#}",
            format!("{}/{}", s.step, self.steps()),
            self.ink.bar(f64::from(s.served.requests) / top, 8),
            s.served.requests,
            self.ink.bar(s.awake, 10),
            100.0 * s.awake,
            s.served.tokens_per_second,
            s.served.throughput,
            s.loss,
            s.loss_increase,
            moved(s)
        )
    }

    /// The end: chart and proof, or the document.
    ///
    /// # Errors
    /// When the document has no JSON form.
    pub fn closing(
        &self,
        steps: &[Step],
        woken: &Woken,
        log: Option<&Path>,
        svg: Option<&Path>,
        took: Duration,
    ) -> anyhow::Result<()> {
        let lowest_awake = steps.iter().map(|s| s.awake).fold(1.0, f64::min);
        if self.json {
            let document = Document {
                about: &self.about,
                steps,
                lowest_awake,
                ranks_fell: went(steps, |before, after| after < before),
                ranks_rose: went(steps, |before, after| after > before),
                wake: woken,
                log,
                svg,
                seconds: took.as_secs_f64(),
            };
            say!("{}", serde_json::to_string_pretty(&document)?);
            return Ok(());
        }
        let proof = if woken.identical {
            "every logit and every loss is the base's, bit for bit"
        } else {
            "OUTPUTS DIFFER FROM THE BASE"
        };
        if self.quiet {
            let end = steps.last().map_or(1.0, |s| s.awake);
            let (low, end) = (100.0 * lowest_awake, 100.0 * end);
            say!("awake: 100.0 % at first, {low:.1} % at the lowest, {end:.1} % at the end; woken, {proof}");
            return Ok(());
        }
        say!("\n{}", self.chart(steps).trim_end());
        if let Some(last) = steps.last() {
            say!(
                "\nawake: 100.0 % at first, {:.1} % at the lowest, {:.1} % at the end ({} parked); {} steps in {:.1} s",
                100.0 * lowest_awake,
                100.0 * last.awake,
                megabytes(last.parked_bytes),
                steps.len(),
                took.as_secs_f64()
            );
        }
        say!("woke everything in {:.3} ms: {proof}", 1000.0 * woken.seconds);
        for (what, path) in [("events", log), ("picture", svg)] {
            if let Some(path) = path {
                say!("{what} in {}", path.display());
            }
        }
        Ok(())
    }

    fn chart(&self, steps: &[Step]) -> String {
        let [load, awake, speed, model, loss] = figures(steps);
        let row = |name, values, digits, from_zero| Row { name, values, digits, from_zero };
        let rows = [
            row("requests", load.as_slice(), 0, true),
            row("awake, %", &awake, 1, false),
            row("tokens/s, seen", &speed, 0, true),
            row("tokens/s, model", &model, 0, false),
            row("loss, nats/token", &loss, 3, false),
        ];
        chart::chart(&rows, self.ink, 3, self.room)
    }

    /// The picture of all steps.
    pub fn svg(&self, steps: &[Step], woken: &Woken) -> String {
        let [load, awake, speed, model, loss] = figures(steps);
        let panel = |name, unit, values, digits, from_zero, columns, colour| Panel {
            name,
            unit,
            values,
            digits,
            from_zero,
            columns,
            colour,
        };
        let panels = [
            panel("load", "requests", load.as_slice(), 0, true, true, "#ffa858"),
            panel("awake", "% of parameters", &awake, 1, false, false, "#68d696"),
            panel("speed seen", "tokens/s", &speed, 0, true, false, "#5cadff"),
            panel("speed of model", "tokens/s", &model, 0, false, false, "#9ac7ff"),
            panel("loss", "nats/token", &loss, 3, false, false, "#ff8f8f"),
        ];
        let title = format!("{}: {}", self.about.base, self.about.policies.join(" → "));
        let note = match woken.identical {
            true => "Then everything woke: the base again, bit for bit.",
            false => "Then everything woke, but the outputs differ from the base's.",
        };
        svg::svg(&title, note, &panels)
    }
}

/// Load, share awake in percent, both speeds, and loss, step by step.
fn figures(steps: &[Step]) -> [Vec<f64>; 5] {
    let of = |f: &dyn Fn(&Step) -> f64| steps.iter().map(f).collect();
    [
        of(&|s| f64::from(s.served.requests)),
        of(&|s| 100.0 * s.awake),
        of(&|s| s.served.tokens_per_second),
        of(&|s| s.served.throughput),
        of(&|s| s.loss),
    ]
}

/// Whether some step changed the parameters awake so.
fn went(steps: &[Step], so: impl Fn(u64, u64) -> bool) -> bool {
    steps.iter().any(|s| so(s.parameters_before, s.parameters))
}

fn header() -> String {
    format!("{:>7}  {:<12}  {:<18}  {:>6}  {:>6}  {:>14}  change", "step", "load", "awake", "seen", "model", "loss")
}

/// What moved: `134 slices sleep more, 2 less`.
fn moved(s: &Step) -> String {
    let slices = |n: u32| if n == 1 { "1 slice" } else { "slices" }.to_owned();
    let counted = |n: u32| if n == 1 { slices(1) } else { format!("{n} {}", slices(n)) };
    match (s.slept, s.woke) {
        (0, 0) => "as it was".into(),
        (slept, 0) => format!("{} down", counted(slept)),
        (0, woke) => format!("{} up", counted(woke)),
        (slept, woke) => format!("{} down, {woke} up", counted(slept)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plastic::demo::serve::Served;

    fn view(live: bool, ink: Ink) -> View {
        let about = About {
            base: "tiny".into(),
            policies: vec!["guardrail 1.0.0".into()],
            phase: "serve".into(),
            slices: 2,
            parameters: 100,
            budget: 1.0,
            load: vec![1, 8],
            idle_tokens_per_second: 800.0,
            target_tokens_per_second: 320.0,
            loss: 3.0,
        };
        View { about, json: false, quiet: false, live, ink, room: 80 }
    }

    fn step(number: u32, requests: u32, before: u64, parameters: u64) -> Step {
        Step {
            step: number,
            served: Served { requests, tokens_per_second: 222.2, throughput: 801.0, ..Served::default() },
            fate: if before == parameters { Fate::Held } else { Fate::Committed },
            reason: String::new(),
            parameters_before: before,
            parameters,
            awake: parameters as f64 / 100.0,
            rank: parameters,
            parked_bytes: 0,
            slept: u32::from(parameters < before) * 2,
            woke: u32::from(parameters > before),
            predicted: None,
            loss: 3.25,
            loss_increase: 0.25,
            apply_seconds: 0.0,
            events: Vec::new(),
        }
    }

    #[test]
    fn a_line_says_the_same_with_and_without_bars() {
        let s = step(2, 8, 100, 90);
        assert_eq!(
            view(false, Ink::Blocks).plain(&s),
            "step 2/2: load 8, 90.0 % awake, 222 tokens/s seen by a request, 801 by the model, loss 3.250 (+0.250), 2 slices down"
        );
        let drawn = anstream::adapter::strip_str(&view(true, Ink::Ascii).drawn(&s)).to_string();
        assert_eq!(drawn, "    2/2  ########   8  #########.  90.0 %     222     801   3.250  +0.250  2 slices down");
        assert_eq!(header().find("change"), drawn.find("2 slices down"));
        assert!(view(true, Ink::Blocks).drawn(&s).contains("████████"));
    }

    #[test]
    fn falling_and_rising_are_told_apart() {
        let steps = [step(1, 8, 100, 90), step(2, 1, 90, 95)];
        assert!(went(&steps, |b, a| a < b) && went(&steps, |b, a| a > b));
        assert!(!went(&steps[..1], |b, a| a > b) && !went(&steps[1..], |b, a| a < b));
        assert_eq!((moved(&steps[1]), moved(&step(3, 1, 95, 95))), ("1 slice up".into(), "as it was".into()));
    }

    #[test]
    fn the_pictures_show_every_step() {
        let steps = [step(1, 1, 100, 100), step(2, 8, 100, 90)];
        let chart = view(false, Ink::Ascii).chart(&steps);
        assert!(chart.is_ascii() && chart.contains("awake, %              100.0"), "{chart}");
        let woken =
            Woken { base_sha256: "a".into(), woken_sha256: "a".into(), loss: 3.0, identical: true, seconds: 0.0 };
        let svg = view(false, Ink::Ascii).svg(&steps, &woken);
        assert_eq!(svg.matches("<title>step ").count(), 10);
        assert!(svg.contains("step 2: 90.0, % of parameters") && svg.contains("bit for bit"), "{svg}");
    }
}
