//! `plastic-host packs route`: requests with domains, each answered with its domain's pack.

use super::{Global, output, table};
use crate::cli::base;
use crate::cli::interrupt::Interrupt;
use crate::cli::ui;
use crate::eval::stats;
use crate::mlx;
use crate::model::{GenerateOptions, LoadOptions, Model, Tokenizer, generate};
use crate::pack::parked::{From, Parking};
use crate::pack::route::{Action, CORE, DomainMap, Packs, RouteEvent, Router, Rules};
use crate::pack::{Store, attach, compare, domains};
use anyhow::bail;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Options of `packs route`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs route --domain-map taxi=cabs,med=clinic --input requests.jsonl
  plastic-host packs route --base ./my-model --domain-map map.json --input requests.jsonl --ttl-seconds 120 \\
      --max-memory-mb 64 --max-tokens 64 --out events.jsonl

A request is a JSON line with `prompt` (or `text`) and `domain`; a map is a JSON object of domains and packs, null
for the base alone. Packs that were used stay parked in float16 within --max-memory-mb; the one used longest ago goes
first and is read again from its file when it is wanted.")]
pub struct RouteArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Domains and their packs: a JSON file, or taxi=pack1,med=pack2
    #[arg(long, value_name = "MAP")]
    domain_map: String,
    /// Requests
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Seconds after which a pack that nobody asks for is put to sleep; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    ttl_seconds: f64,
    /// Memory for parked packs, MiB [default: no limit]
    #[arg(long, value_name = "MIB")]
    max_memory_mb: Option<f64>,
    /// Domains that are listed as recent
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_recent_domains: usize,
    /// Domain of requests that name none, or an unknown one
    #[arg(long, value_name = "DOMAIN", default_value = CORE)]
    default_domain: String,
    /// Tokens to generate for each request; 0: only route
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_tokens: usize,
    /// Run each prompt up to its first token, and time it
    #[arg(long)]
    probe_forward: bool,
    /// Seconds to wait between two requests
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    sleep_between: f64,
    /// Write the events as JSON lines
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Add to the file of --out
    #[arg(long, requires = "out")]
    append_out: bool,
    /// Accepted as mlx-plastic-rank writes it; the model says how it is loaded
    #[arg(long, hide = true)]
    loader: Option<String>,
}

/// One request and what it took.
#[derive(serde::Serialize)]
struct Event {
    request: usize,
    #[serde(flatten)]
    route: RouteEvent,
    /// Milliseconds the routing took, waking included.
    route_ms: f64,
    /// Where a woken pack came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<From>,
    /// Bytes of the packs that are parked.
    parked_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// All requests together.
#[derive(serde::Serialize)]
struct Summary {
    base: String,
    requests: usize,
    failed: usize,
    /// Requests whose pack, or the bare base, was in place already.
    hits: usize,
    /// Requests that the base alone answered, and their domains.
    without_pack: usize,
    domains_without_pack: BTreeSet<String>,
    /// Requests for which a pack was woken.
    swaps: usize,
    swaps_from_memory: usize,
    swaps_from_disk: usize,
    evictions: usize,
    ttl_expirations: usize,
    median_swap_from_memory_ms: Option<f64>,
    median_swap_from_disk_ms: Option<f64>,
    parked: Vec<String>,
    parked_bytes: u64,
    recent_domains: Vec<String>,
    unusable_rows: usize,
}

/// The model and the packs beside it.
struct Served<'a> {
    model: &'a mut Model,
    parking: &'a mut Parking,
    from: Option<From>,
}

impl Packs for Served<'_> {
    fn wake(&mut self, pack: &str) -> crate::pack::Result<()> {
        self.from = Some(self.parking.wake(self.model, pack)?);
        Ok(())
    }

    fn rest(&mut self) {
        attach::detach(self.model);
    }
}

/// Serves the requests.
///
/// # Errors
/// When base, map or requests cannot be had. A request that fails is an event, and exit code 1 in the end.
pub fn run(args: &RouteArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let seconds = [args.ttl_seconds, args.sleep_between, args.max_memory_mb.unwrap_or(0.0)];
    if seconds.iter().any(|s| !s.is_finite() || *s < 0.0 || *s > 1e9) {
        note!("error: --ttl-seconds, --sleep-between and --max-memory-mb are numbers from 0 to 1e9");
        return Ok(ExitCode::from(2));
    }
    output::check(store, &[("--out", args.out.as_ref())], &[&args.input, args.domain_map.as_ref()])?;
    let map = DomainMap::read(&args.domain_map)?;
    let requests = domains::read(&args.input)?;
    // A pack that is missing fails its own requests; that all are missing is a mistake in the map.
    if !map.packs().is_empty() && map.packs().iter().all(|p| store.there(p).is_err()) {
        store.there(map.packs().first().copied().unwrap_or_default())?;
    }
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let base = base::open(&args.base, g)?;
    let tokenizer = Tokenizer::load(&base.dir)?;
    let mut model = Model::load(&base.dir, &LoadOptions::default())?;
    let budget = args.max_memory_mb.map(|mib| (mib * 1_048_576.0) as u64);
    let mut parking = Parking::new(store.clone(), &base.dir, budget);
    let rules =
        Rules { default_domain: args.default_domain.clone(), ttl: args.ttl_seconds, recent: args.max_recent_domains };
    let mut router = Router::new(map, rules);
    let begun = Instant::now();
    let mut events: Vec<Event> = Vec::with_capacity(requests.rows.len());
    let bar = ui::bar(g, requests.rows.len() as u64, "routing");
    for (i, (domain, prompt)) in requests.rows.iter().enumerate() {
        if interrupt.raised() {
            break;
        }
        if i > 0 && args.sleep_between > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(args.sleep_between));
        }
        let mut served = Served { model: &mut model, parking: &mut parking, from: None };
        let asked = Instant::now();
        let route = router.route(domain.as_deref(), begun.elapsed().as_secs_f64(), &mut served);
        let route_ms = asked.elapsed().as_secs_f64() * 1e3;
        let from = served.from;
        let mut event = Event {
            request: i + 1,
            error: (route.action == Action::Failed).then(|| route.reason.clone()),
            route,
            route_ms,
            from,
            parked_bytes: parking.bytes(),
            first_token_ms: None,
            text: None,
        };
        // The wrong pack must not answer.
        if event.error.is_none()
            && let Err(e) = answer(args, &model, &tokenizer, prompt, &interrupt, &mut event)
        {
            event.error = Some(format!("{e:#}"));
        }
        bar.inc(1);
        events.push(event);
    }
    bar.finish_and_clear();
    attach::detach(&mut model);
    if let Some(out) = &args.out {
        let mut text = match args.append_out && out.exists() {
            true => std::fs::read_to_string(out)?,
            false => String::new(),
        };
        for e in &events {
            text.push_str(&serde_json::to_string(e)?);
            text.push('\n');
        }
        crate::atomic::write_file(out, text.as_bytes())?;
    }
    let summary = summary(base.id, &events, &router, &parking, requests.unusable);
    match g.json {
        true => {
            say!("{}", serde_json::to_string_pretty(&serde_json::json!({ "events": events, "summary": summary }))?)
        }
        false => report(&events, &summary, g),
    }
    if interrupt.raised() {
        bail!("interrupted after {} of {} requests", events.len(), requests.rows.len());
    }
    Ok(if summary.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn answer(
    args: &RouteArgs,
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    interrupt: &Interrupt,
    event: &mut Event,
) -> anyhow::Result<()> {
    if args.max_tokens == 0 && !args.probe_forward {
        return Ok(());
    }
    let ids = tokenizer.encode(prompt, true)?;
    if args.max_tokens == 0 {
        event.first_token_ms = Some(compare::first_token_ms(model, &[&ids])?);
        return Ok(());
    }
    let how = GenerateOptions { max_tokens: args.max_tokens, ..GenerateOptions::default() };
    let said = generate(model, tokenizer, &ids, &how, &mut |_| !interrupt.raised())?;
    event.first_token_ms = Some(said.first_token_ms);
    event.text = Some(said.text);
    Ok(())
}

fn summary(base: String, events: &[Event], router: &Router, parking: &Parking, unusable: usize) -> Summary {
    let times =
        |from: From| -> Vec<f64> { events.iter().filter(|e| e.from == Some(from)).map(|e| e.route_ms).collect() };
    let (memory, disk) = (times(From::Memory), times(From::Disk));
    let bare: Vec<&Event> = events.iter().filter(|e| e.route.pack.is_none() && e.error.is_none()).collect();
    let domains: BTreeSet<String> = bare.iter().map(|e| e.route.requested_domain.clone()).collect();
    let median = |t: &[f64]| (!t.is_empty()).then(|| stats::median(t));
    Summary {
        base,
        requests: events.len(),
        failed: events.iter().filter(|e| e.error.is_some()).count(),
        hits: events.iter().filter(|e| e.route.action == Action::Noop && e.route.pack.is_some()).count(),
        without_pack: bare.len(),
        domains_without_pack: domains,
        swaps: memory.len() + disk.len(),
        swaps_from_memory: memory.len(),
        swaps_from_disk: disk.len(),
        evictions: parking.evictions(),
        ttl_expirations: router.expirations(),
        median_swap_from_memory_ms: median(&memory),
        median_swap_from_disk_ms: median(&disk),
        parked: parking.names().into_iter().map(str::to_owned).collect(),
        parked_bytes: parking.bytes(),
        recent_domains: router.recent().to_vec(),
        unusable_rows: unusable,
    }
}

fn report(events: &[Event], s: &Summary, g: &Global) {
    if !g.quiet {
        let mut rows =
            table::plain(&["", "domain", "action", "pack", "from", "swap", "parked", "first token"], &[0, 5, 6, 7]);
        for e in events {
            let action = serde_json::to_value(e.route.action).ok().and_then(|v| v.as_str().map(str::to_owned));
            rows.add_row([
                e.request.to_string(),
                e.route.requested_domain.clone(),
                action.unwrap_or_default(),
                e.route.pack.clone().unwrap_or_else(|| "(base)".into()),
                e.from.map_or("", |f| if f == From::Memory { "memory" } else { "disk" }).to_owned(),
                format!("{:.2} ms", e.route_ms),
                format!("{:.2} MiB", e.parked_bytes as f64 / 1_048_576.0),
                e.first_token_ms.map_or(String::new(), |ms| format!("{ms:.0} ms")),
            ]);
        }
        say!("{rows}");
    }
    for e in events {
        if let Some(text) = &e.text {
            say!("{} [{}] {}", e.request, e.route.resolved_domain, text.trim());
        }
        if let Some(error) = &e.error {
            note!("request {}: {}: {error}", e.request, e.route.requested_domain);
        }
    }
    let ms = |x: Option<f64>| x.map_or("none".into(), |x| format!("median {x:.2} ms"));
    say!(
        "{} requests: {} hits, {} swaps ({} from memory, {}; {} from disk, {}), {} evicted, {} expired, {} failed",
        s.requests,
        s.hits,
        s.swaps,
        s.swaps_from_memory,
        ms(s.median_swap_from_memory_ms),
        s.swaps_from_disk,
        ms(s.median_swap_from_disk_ms),
        s.evictions,
        s.ttl_expirations,
        s.failed
    );
    if s.without_pack > 0 {
        let domains: Vec<&str> = s.domains_without_pack.iter().map(String::as_str).collect();
        say!("{} of them without a pack: {}", s.without_pack, domains.join(", "));
    }
    if s.unusable_rows > 0 {
        say!("left out {} rows without text", s.unusable_rows);
    }
}
