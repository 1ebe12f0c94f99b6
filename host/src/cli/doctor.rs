//! `plastic-host doctor`: what this machine brings, and what to do about anything missing.

use super::Global;
use crate::mlx::device::{self, Backend, DeviceInfo};
use crate::mlx::memory;
use crate::model::paths;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The Rust target that plugins are built for.
const WASM: &str = "wasm32-unknown-unknown";
/// Size of the measured matrix product, and the time it may take: once as it is, once on one thread.
const GEMM: (i32, Duration) = (1024, Duration::from_millis(400));
/// Below this a CPU's BLAS is not a real one: a reference BLAS, on its one thread, reaches 2 to 8 GFLOPS.
const SLOW_GFLOPS: f64 = 10.0;
/// What the default model needs in the main job.
const MEMORY_WANTED: u64 = 3 << 30;
/// Width of the column of names.
const NAMES: usize = 14;

/// Options of `doctor`.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// Works, but something could be better; the remedy says what.
    Warn,
    /// The program cannot do its work.
    Missing,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// The figures in `text`, for scripts.
    #[serde(flatten)]
    facts: Map<String, Value>,
}

impl Check {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Check { name, status: Status::Ok, text: text.into(), remedy: None, facts: Map::new() }
    }

    fn warn(name: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { status: Status::Warn, remedy: Some(remedy.into()), ..Check::ok(name, text) }
    }

    fn missing(name: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { status: Status::Missing, remedy: Some(remedy.into()), ..Check::ok(name, text) }
    }

    /// Adds a figure for scripts.
    fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.into(), value.into());
        self
    }
}

/// Checks this machine; exit code 1 when something essential is missing.
///
/// # Errors
/// Never for what it finds: that is in the report.
pub fn run(_args: &DoctorArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let mut checks = vec![Check::ok("plastic-host", env!("CARGO_PKG_VERSION"))];
    match device::init() {
        Ok(info) => {
            checks.extend([mlx(&info), blas(&info), speed(&info), threads(&info), kernels(), compile(&info)]);
        }
        Err(e) => checks.push(mlx_failed(&e.to_string())),
    }
    checks.extend([memory_check(), model_cache(), models(), wasm_target(), plugins(&super::locate::plugins_dir())]);
    match g.json {
        true => {
            let able = able(&checks);
            say!("{}", serde_json::to_string_pretty(&json!({ "ok": able, "checks": checks }))?);
        }
        false => print(&checks),
    }
    Ok(if able(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the program can do its work.
fn able(checks: &[Check]) -> bool {
    checks.iter().all(|c| c.status != Status::Missing)
}

fn print(checks: &[Check]) {
    for check in checks {
        let (mark, colour) = match check.status {
            Status::Ok => ("ok", AnsiColor::Green),
            Status::Warn => ("warn", AnsiColor::Yellow),
            Status::Missing => ("missing", AnsiColor::Red),
        };
        let style = Style::new().fg_color(Some(colour.into()));
        // anstream drops the colours where nobody sees them, and where NO_COLOR says so.
        say!("{style}{mark:<7}{style:#} {:<NAMES$} {}", check.name, check.text);
        if let Some(remedy) = &check.remedy {
            say!("{:8}{:<NAMES$} → {remedy}", "", "");
        }
    }
}

/// MLX did not start: a wrong setting names itself, anything else is a damaged library.
fn mlx_failed(error: &str) -> Check {
    let remedy = match error.contains(device::THREADS_ENV) {
        true => format!("set {} to the number of threads to use, or unset it", device::THREADS_ENV),
        false => "run `make distclean setup build` in the checkout".into(),
    };
    Check::missing("MLX", error, remedy)
}

fn mlx(info: &DeviceInfo) -> Check {
    let name = info.name.as_ref().map_or(String::new(), |n| format!(", {n}"));
    Check::ok("MLX", format!("{} on {}{name}", info.mlx, info.backend.name()))
        .fact("version", info.mlx.clone())
        .fact("backend", json!(info.backend))
        .fact("device", info.name.clone())
}

fn blas(info: &DeviceInfo) -> Check {
    let blas = &info.blas;
    let detail = blas.detail.as_ref().map_or(String::new(), |d| format!(" {d}"));
    let text = format!("{}{detail}", blas.name);
    let check = match blas.name.as_str() {
        "reference" if info.backend == Backend::Cpu => Check::warn(
            "BLAS",
            format!("{text}: the slow one that comes with MLX"),
            "run `MLX_BLAS=openblas make setup build` in the checkout",
        ),
        "OpenBLAS" if held_back(blas.detail.as_deref().unwrap_or_default()) => Check::warn(
            "BLAS",
            format!("{text}: kernels of an older processor"),
            "this processor has AVX-512: unset OPENBLAS_CORETYPE",
        ),
        _ => Check::ok("BLAS", text),
    };
    check.fact("library", blas.name.clone()).fact("threads", blas.threads)
}

/// Whether the environment makes OpenBLAS (as it describes itself) use less than the processor has.
fn held_back(detail: &str) -> bool {
    let asked = std::env::var_os("OPENBLAS_CORETYPE").is_some_and(|v| !v.is_empty());
    let avx512 = device::cpu_features().contains(&("avx512f", true));
    asked && avx512 && ["Haswell", "Zen", "Sandybridge", "Nehalem", "Prescott"].iter().any(|core| detail.contains(core))
}

/// Measures; also the proof that MLX computes what it should.
fn speed(info: &DeviceInfo) -> Check {
    const NAME: &str = "matrix product";
    let (n, at_most) = GEMM;
    let all = match device::gemm_gflops(n, at_most) {
        Ok(gflops) => gflops,
        Err(e) => return Check::missing(NAME, e.to_string(), "run `make distclean setup build` in the checkout"),
    };
    // One thread beside it tells whether more threads help.
    let one = match info.blas.threads {
        Some(t) if t > 1 && info.backend == Backend::Cpu && device::set_product_threads(1) => {
            let one = device::gemm_gflops(n, at_most).ok();
            device::set_product_threads(t);
            one
        }
        _ => None,
    };
    let beside = one.map_or(String::new(), |g| format!(", {g:.0} on one thread"));
    let text = format!("{all:.0} GFLOPS (float32, {n} × {n}){beside}");
    let check = if info.backend == Backend::Cpu && all < SLOW_GFLOPS {
        let remedy = "a real BLAS reaches 20 to 100 GFLOPS a core: `MLX_BLAS=openblas make setup build`, and look for other programs that use the processor";
        Check::warn(NAME, text, remedy)
    } else if one.is_some_and(|one| one > 1.2 * all) {
        let remedy = format!("other programs use the processor: wait for them, or set {} lower", device::THREADS_ENV);
        Check::warn(NAME, text, remedy)
    } else {
        Check::ok(NAME, text)
    };
    check.fact("gflops", all).fact("gflops_one_thread", one)
}

fn threads(info: &DeviceInfo) -> Check {
    let cores = device::cores();
    let text = match info.blas.threads {
        Some(blas) if blas != info.threads => {
            format!("{} on {cores} cores, {blas} for matrix products", info.threads)
        }
        _ => format!("{} on {cores} cores", info.threads),
    };
    let check = match info.threads > cores {
        true => {
            Check::warn("threads", text, format!("more threads than cores cost time: unset {}", device::THREADS_ENV))
        }
        false => Check::ok("threads", text),
    };
    check.fact("threads", info.threads).fact("cores", cores)
}

/// What the kernels can use of this processor.
fn kernels() -> Check {
    let features = device::cpu_features();
    let has = |name: &str| features.iter().any(|(n, yes)| *n == name && *yes);
    let list: Vec<&str> = features.iter().filter(|(_, yes)| *yes).map(|(n, _)| *n).collect();
    let check = if cfg!(target_arch = "x86_64") && !(has("avx2") && has("fma")) {
        Check::warn(
            "processor",
            "no AVX2: the kernels run without vector instructions",
            "expect a tenth of the speed; use a processor from 2013 or newer, or a virtual machine that shows its host's",
        )
    } else {
        Check::ok("processor", if list.is_empty() { std::env::consts::ARCH.into() } else { list.join(" ") })
    };
    let mut check = check.fact("features", json!(list)).fact("kernels", crate::mlx::kernels::isa());
    check.text.push_str(&format!("; kernels: {}", crate::mlx::kernels::isa()));
    check
}

/// Whether MLX would compile and load code from the temporary directory.
fn compile(info: &DeviceInfo) -> Check {
    let dir = std::env::temp_dir();
    let text = match (info.backend, info.compile) {
        (Backend::Cpu, false) => format!("off (temporary directory {})", dir.display()),
        (Backend::Cpu, true) => format!("on ({}=1), in {}", device::COMPILE_ENV, dir.join("mlx").display()),
        _ => "on the GPU only".to_owned(),
    };
    let check = match info.backend == Backend::Cpu && info.compile && others_can_write(&dir) {
        true => Check::warn(
            "run-time code",
            text,
            format!(
                "others can write there, and MLX loads libraries from it: unset {}, or set TMPDIR to a directory of yours",
                device::COMPILE_ENV
            ),
        ),
        false => Check::ok("run-time code", text),
    };
    check.fact("compile", info.compile).fact("tmpdir", dir.display().to_string())
}

/// Whether users beside the owner may create files in a directory.
fn others_can_write(dir: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        dir.metadata().is_ok_and(|m| m.permissions().mode() & 0o022 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        false
    }
}

fn memory_check() -> Check {
    let (total, available) = (device::memory_total(), memory::available());
    let gib = |b: Option<u64>| b.map_or("?".into(), size);
    let text = format!("{} available of {}", gib(available), gib(total));
    let check = match available {
        Some(a) if a < MEMORY_WANTED => Check::warn(
            "memory",
            text,
            format!(
                "the default model's main job wants {}: close other programs or raise the container's limit",
                size(MEMORY_WANTED)
            ),
        ),
        _ => Check::ok("memory", text),
    };
    check.fact("total", total).fact("available", available)
}

fn model_cache() -> Check {
    const NAME: &str = "model cache";
    let remedy = format!("set {} to a directory you can write", paths::CACHE_ENV);
    let Some(dir) = paths::cache_dir() else {
        return Check::missing(NAME, "no home directory is known", remedy);
    };
    let text = dir.display().to_string();
    match tempfile_in(&dir) {
        Ok(()) => Check::ok(NAME, text.clone()),
        Err(e) => Check::missing(NAME, format!("{text} cannot be written: {e}"), remedy),
    }
    .fact("directory", text)
}

/// Tries to write in `dir`, or in the nearest directory above it that exists.
fn tempfile_in(dir: &Path) -> std::io::Result<()> {
    let exists = dir.ancestors().find(|d| d.exists()).unwrap_or(dir);
    tempfile::tempfile_in(exists).map(drop)
}

fn models() -> Check {
    const NAME: &str = "models";
    let mut found: Vec<(String, u64)> = paths::models_dir().map(|d| checkpoints(&d)).unwrap_or_default();
    found.sort();
    let list: Vec<String> = found.iter().map(|(name, bytes)| format!("{name} ({})", size(*bytes))).collect();
    let check = match list.is_empty() {
        true => Check::warn(
            NAME,
            "none in the cache",
            "`plastic-host model fetch smollm2-135m` gets the default one (the main job does so by itself)",
        ),
        false => Check::ok(NAME, list.join(", ")),
    };
    let facts: Vec<Value> = found.iter().map(|(name, bytes)| json!({ "id": name, "bytes": bytes })).collect();
    check.fact("models", facts)
}

/// The checkpoints in a directory of models, with their sizes in bytes.
fn checkpoints(dir: &Path) -> Vec<(String, u64)> {
    let named = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
    files(dir)
        .into_iter()
        .filter(|p| p.join("config.json").is_file())
        .filter_map(|p| Some((named(&p).filter(|n| paths::is_plain_name(n))?, bytes(&p))))
        .collect()
}

/// Bytes of the files in a directory.
fn bytes(dir: &Path) -> u64 {
    files(dir).iter().filter_map(|p| p.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// What a directory holds; nothing where it cannot be read.
fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

fn wasm_target() -> Check {
    const NAME: &str = "WASM target";
    let remedy = format!("only needed to build plugins: rustup target add {WASM}");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc).args(["--print", "target-libdir", "--target", WASM]).output();
    let check = match out {
        Err(e) => Check::warn(
            NAME,
            format!("rustc cannot be started: {e}"),
            "only needed to build plugins: https://rustup.rs",
        ),
        Ok(out) => match Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir() {
            true => Check::ok(NAME, WASM),
            false => Check::warn(NAME, format!("{WASM} is not installed"), remedy),
        },
    };
    let installed = check.status == Status::Ok;
    check.fact("installed", installed)
}

/// The plugins of a checkout, seen from its root.
fn plugins(dir: &Path) -> Check {
    const NAME: &str = "plugins";
    let mut found: Vec<String> = files(dir)
        .into_iter()
        .filter(|p| p.extension().is_some_and(|x| x == "wasm"))
        .map(|p| p.display().to_string())
        .collect();
    found.sort();
    let check = match found.is_empty() {
        true => Check::warn(
            NAME,
            format!("no {}/*.wasm here", dir.display()),
            "run `make plugins` in the checkout, or name a policy with --policy FILE",
        ),
        false => Check::ok(NAME, found.join(", ")),
    };
    check.fact("plugins", found)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_is_missing_fails() {
        let ok = Check::ok("a", "fine");
        let warn = Check::warn("b", "slow", "be patient");
        let missing = Check::missing("c", "gone", "get it back");
        assert!(able(&[ok, warn]));
        assert!(!able(&[missing]));
    }

    #[test]
    fn scripts_get_the_figures() {
        let check = Check::warn("speed", "3 GFLOPS", "wait").fact("gflops", 3.0);
        let value = serde_json::to_value(&check).unwrap();
        assert_eq!(
            value,
            json!({ "name": "speed", "status": "warn", "text": "3 GFLOPS", "remedy": "wait", "gflops": 3.0 })
        );
    }

    #[test]
    fn models_and_plugins_are_found_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["good", "empty", ".partial"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["good/config.json", "good/model.safetensors", ".partial/config.json"] {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        assert_eq!(checkpoints(dir.path()), [("good".to_owned(), 4)]);
        assert_eq!(plugins(dir.path()).status, Status::Warn);
        std::fs::write(dir.path().join("a.wasm"), "").unwrap();
        assert_eq!(plugins(dir.path()).status, Status::Ok);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(tempfile_in(&dir.path().join("not/yet/there")).is_ok());
        assert!(tempfile_in(&file).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn shared_directories_are_told_from_private_ones() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert!(!others_can_write(dir.path()));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(others_can_write(dir.path()));
    }
}
