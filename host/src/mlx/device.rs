//! Starting MLX, and what it runs on: version, device, BLAS, threads.
//!
//! [`init`] is called once by every verb that computes. The rest answers questions about this
//! process and this machine; a question that cannot be answered is `None`, never a failure.
//!
//! Environment: `PLASTIC_THREADS` (threads of matrix products and kernels; default: the cores this
//! process may use), `PLASTIC_COMPILE=1` (let MLX fuse operations on the CPU by starting the C++
//! compiler at run time).

use super::{Array, Context, MlxError, Result, kernels};
use mlx_rs::error::Exception;
use mlx_rs::{Device, DeviceType};
use serde::Serialize;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The environment variable that sets the number of threads.
pub const THREADS_ENV: &str = "PLASTIC_THREADS";
/// The environment variable that allows MLX's run-time compiler on the CPU.
pub const COMPILE_ENV: &str = "PLASTIC_COMPILE";
/// Threads that can be asked for; more than any machine this runs on has cores.
pub const MAX_THREADS: usize = 256;

/// What tensors are computed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The processor.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// An NVIDIA GPU.
    Cuda,
}

impl Backend {
    /// The name people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "CPU",
            Backend::Metal => "Metal",
            Backend::Cuda => "CUDA",
        }
    }
}

/// The library that multiplies dense matrices on the CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blas {
    /// `OpenBLAS`, `Accelerate`, `reference`, or `unknown`.
    pub name: String,
    /// Its own description: version, build options, kernel in use.
    pub detail: Option<String>,
    /// Threads it uses for one product.
    pub threads: Option<usize>,
}

/// What MLX runs on in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Version of the MLX library, such as `0.32.2`.
    pub mlx: String,
    /// MLX's default device.
    pub backend: Backend,
    /// The device's own name, where it tells one.
    pub name: Option<String>,
    /// Who multiplies matrices on the CPU.
    pub blas: Blas,
    /// Threads asked for (`PLASTIC_THREADS`) or cores this process may use.
    pub threads: usize,
    /// Whether MLX may compile fused kernels at run time.
    pub compile: bool,
}

/// Starts MLX: errors become results instead of ending the process, the CPU's run-time compiler is
/// off unless asked for, the BLAS has its threads. Calls after the first answer the same.
///
/// The run-time compiler is off because it loads libraries from a predictable place under the
/// temporary directory, which others may be able to write, and gains little on a CPU.
///
/// # Errors
/// When `PLASTIC_THREADS` is no sensible number or MLX finds no device.
pub fn init() -> Result<DeviceInfo> {
    static INFO: OnceLock<DeviceInfo> = OnceLock::new();
    if let Some(info) = INFO.get() {
        return Ok(info.clone());
    }
    // The first fallible call replaces mlx-c's error handler, which would end the process.
    mlx_rs::memory::active_memory().context("starting MLX")?;
    let threads = threads()?;
    kernels::default_threads(threads);
    super::memory::reuse();
    let kind = Device::try_default().and_then(|d| d.get_type()).context("asking MLX for its default device")?;
    let backend = match kind {
        DeviceType::Cpu => Backend::Cpu,
        DeviceType::Gpu if cfg!(target_os = "macos") => Backend::Metal,
        DeviceType::Gpu => Backend::Cuda,
    };
    let compile = backend != Backend::Cpu || std::env::var(COMPILE_ENV).is_ok_and(|v| v == "1");
    if !compile {
        mlx_rs::transforms::compile::disable_compile();
    }
    set_openblas_threads(if kernels::splits_products() { 1 } else { threads });
    let info = DeviceInfo { mlx: version(), backend, name: device_name(kind), blas: blas(), threads, compile };
    Ok(INFO.get_or_init(|| info).clone())
}

/// Threads to compute with: `PLASTIC_THREADS`, or the cores this process may use.
///
/// # Errors
/// When the variable is not a whole number from 1 to [`MAX_THREADS`].
pub fn threads() -> Result<usize> {
    match std::env::var(THREADS_ENV) {
        Ok(text) if !text.is_empty() => parse_threads(&text),
        _ => Ok(cores()),
    }
}

fn parse_threads(text: &str) -> Result<usize> {
    text.trim().parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or_else(|| MlxError {
        what: "starting MLX".into(),
        exception: Exception::custom(format!("{THREADS_ENV}={text} is not a whole number from 1 to {MAX_THREADS}")),
    })
}

/// Cores this process may use, as affinity and container limits leave them.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Sets the threads of one matrix product on the CPU; false where the BLAS in use cannot be told.
pub fn set_product_threads(n: usize) -> bool {
    if kernels::splits_products() {
        kernels::set_threads(n);
        return true;
    }
    set_openblas_threads(n)
}

fn set_openblas_threads(n: usize) -> bool {
    let (Some(set), Ok(n)) = (openblas::<unsafe extern "C" fn(c_int)>("set_num_threads"), c_int::try_from(n)) else {
        return false;
    };
    // SAFETY: OpenBLAS's `void openblas_set_num_threads(int)`; it clamps any number.
    unsafe { set(n) };
    true
}

/// Speed of one square float32 product of size `n` through MLX's default device, in 10⁹ floating-point
/// operations a second: the best of as many as fit into `at_most`, at least one. `n` of 1024 tells a
/// real BLAS from a reference one.
///
/// # Errors
/// When MLX fails, or the product is wrong.
pub fn gemm_gflops(n: i32, at_most: Duration) -> Result<f64> {
    let what = "measuring a matrix product";
    let ones = Array::ones::<f32>(&[n, n]).context(what)?;
    super::eval([&ones])?;
    let start = Instant::now();
    let mut best = f64::INFINITY;
    // The first product pays for threads and buffers: it counts only where no second one fits.
    for round in 0.. {
        let t = Instant::now();
        let product = ones.matmul(&ones).context(what)?;
        super::eval([&product])?;
        let seconds = t.elapsed().as_secs_f64();
        if round == 0 {
            check_product(&product, n)?;
        }
        let last = start.elapsed() + t.elapsed() > at_most;
        if round > 0 || last {
            best = best.min(seconds);
        }
        if last {
            break;
        }
    }
    Ok(2.0 * f64::from(n).powi(3) / best * 1e-9)
}

/// Every element of a product of ones is `n`, exactly.
fn check_product(product: &Array, n: i32) -> Result<()> {
    let what = "checking a matrix product";
    let number = |x: Array| x.try_item_exact::<f32>().map_err(|e| Exception::custom(e.to_string()));
    let low = product.min(None).and_then(number).context(what)?;
    let high = product.max(None).and_then(number).context(what)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes are small")]
    let expected = n as f32;
    match low == expected && high == expected {
        true => Ok(()),
        false => Err(MlxError {
            what: what.into(),
            exception: Exception::custom(format!("expected {expected} everywhere, found {low} to {high}")),
        }),
    }
}

/// The processor's abilities that the kernels ask for, and whether it has them.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// Bytes of memory this machine has. `None` when the system does not say.
pub fn memory_total() -> Option<u64> {
    if cfg!(target_os = "macos") {
        let out = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
        return String::from_utf8(out.stdout).ok()?.trim().parse().ok();
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The BLAS that this process has loaded.
pub fn blas() -> Blas {
    if cfg!(target_os = "macos") {
        return Blas { name: "Accelerate".into(), detail: None, threads: None };
    }
    let Some(count) = openblas::<unsafe extern "C" fn() -> c_int>("get_num_threads") else {
        // A reference library shows under the name it has in MLX's wheel.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let name = if maps.contains("/libblas-") { "reference" } else { "unknown" };
        return Blas { name: name.into(), detail: None, threads: None };
    };
    // SAFETY: OpenBLAS's `int openblas_get_num_threads(void)`.
    let own = usize::try_from(unsafe { count() }).ok();
    let threads = if kernels::splits_products() { Some(kernels::threads()) } else { own };
    let detail = openblas::<unsafe extern "C" fn() -> *const c_char>("get_config").and_then(|config| {
        // SAFETY: OpenBLAS's `char* openblas_get_config(void)` answers a static string.
        let text = unsafe { config() };
        // SAFETY: not null, terminated, and never freed.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned())
    });
    let detail = detail.map(|d| d.strip_prefix("OpenBLAS").map_or(d.clone(), |rest| rest.trim().to_owned()));
    Blas { name: "OpenBLAS".into(), detail, threads }
}

/// A function of OpenBLAS, if that is what is loaded. `F` must be its C type.
fn openblas<F: Copy>(name: &str) -> Option<F> {
    #[cfg(unix)]
    {
        let process = libloading::os::unix::Library::this();
        // PyPI's build puts a prefix before every name; our jump table drops it for some.
        ["openblas_", "scipy_openblas_"].iter().find_map(|prefix| {
            let symbol = format!("{prefix}{name}\0");
            // SAFETY: only looks the symbol up; the callers name its C type.
            unsafe { process.get::<F>(symbol.as_bytes()) }.ok().map(|f| *f)
        })
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        None
    }
}

/// Version of the loaded MLX library.
fn version() -> String {
    // SAFETY: makes, fills, reads and frees a string of mlx-c; a failure leaves it empty.
    unsafe {
        let mut text = mlx_sys::mlx_string_new();
        let done = mlx_sys::mlx_version(&raw mut text) == 0;
        let data = mlx_sys::mlx_string_data(text);
        let version = match done && !data.is_null() {
            true => CStr::from_ptr(data).to_string_lossy().into_owned(),
            false => "unknown".into(),
        };
        mlx_sys::mlx_string_free(text);
        version
    }
}

/// What the default device calls itself.
fn device_name(kind: DeviceType) -> Option<String> {
    // SAFETY: handles of mlx-c, freed on every path; `value` points into `info` and is copied before that.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(kind.into(), 0);
        let mut info = mlx_sys::mlx_device_info_new();
        let mut value: *const c_char = std::ptr::null();
        let found = mlx_sys::mlx_device_info_get(&raw mut info, device) == 0
            && mlx_sys::mlx_device_info_get_string(&raw mut value, info, c"device_name".as_ptr()) == 0
            && !value.is_null();
        let name = found.then(|| CStr::from_ptr(value).to_string_lossy().trim().to_owned());
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        name.filter(|n| !n.is_empty())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn init_answers_the_same_twice() {
        let first = init().unwrap();
        assert_eq!(first, init().unwrap());
        assert!(first.mlx.starts_with("0."), "{}", first.mlx);
        assert!(first.threads >= 1);
    }

    #[test]
    fn thread_counts_are_checked() {
        assert_eq!(parse_threads(" 3 ").unwrap(), 3);
        for bad in ["0", "-1", "257", "many", "2.5"] {
            let text = parse_threads(bad).unwrap_err().to_string();
            assert!(text.contains(&format!("PLASTIC_THREADS={bad}")) && text.contains("1 to 256"), "{text}");
        }
    }

    #[test]
    fn products_are_measured_and_checked() {
        init().unwrap();
        assert!(gemm_gflops(64, Duration::from_millis(5)).unwrap() > 0.0);
        let wrong = Array::ones::<f32>(&[4, 4]).unwrap();
        assert!(check_product(&wrong, 4).unwrap_err().to_string().contains("expected 4"));
    }

    #[test]
    fn openblas_takes_its_thread_count() {
        // One test only: the count belongs to the whole process.
        init().unwrap();
        let before = blas();
        if before.name != "OpenBLAS" {
            assert!(!set_product_threads(1));
            return;
        }
        assert!(before.detail.is_some_and(|d| d.contains("MAX_THREADS")));
        assert!(set_product_threads(1));
        assert_eq!(blas().threads, Some(1));
        set_product_threads(before.threads.unwrap());
    }
}
