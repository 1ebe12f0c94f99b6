//! Which build of MLX and which BLAS: what the user asked for, kept until they ask for another.

use crate::command;
use crate::failure::{Failure, Result};
use crate::wheel::{self, Wheels};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file under `.mlx` that remembers the choice.
const MEMORY: &str = "choice";

/// A build of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Runs everywhere.
    Cpu,
    /// NVIDIA GPUs, drivers from 525.
    Cuda12,
    /// NVIDIA GPUs, drivers from 580.
    Cuda13,
}

impl Backend {
    /// The name used in settings and directory names.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda12 => "cuda12",
            Backend::Cuda13 => "cuda13",
        }
    }

    /// The wheels that hold it.
    pub fn wheels(self) -> &'static Wheels {
        match self {
            Backend::Cpu => &wheel::MLX_CPU,
            Backend::Cuda12 => &wheel::MLX_CUDA12,
            Backend::Cuda13 => &wheel::MLX_CUDA13,
        }
    }

    /// Reads a setting; `driver` answers the major version of the NVIDIA driver, where there is one.
    fn parse(text: &str, driver: impl Fn() -> Option<u32>) -> Result<Self> {
        match text {
            "cpu" => Ok(Backend::Cpu),
            "cuda12" => Ok(Backend::Cuda12),
            "cuda13" => Ok(Backend::Cuda13),
            "cuda" => match driver() {
                Some(580..) => Ok(Backend::Cuda13),
                Some(525..) => Ok(Backend::Cuda12),
                Some(old) => Err(Failure::new(format!("the NVIDIA driver {old} is too old for MLX"))
                    .remedy("update the driver to 525 or newer, or use MLX_BACKEND=cpu")),
                None => Err(Failure::new("MLX_BACKEND=cuda, but nvidia-smi finds no NVIDIA driver")
                    .remedy("install the driver, or name MLX_BACKEND=cuda13 (or cuda12) to build for another machine")),
            },
            other => Err(Failure::new(format!("MLX_BACKEND={other} is no build of MLX"))
                .remedy("use cpu, cuda, cuda12 or cuda13")),
        }
    }
}

/// The BLAS and LAPACK that libmlx.so calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blas {
    /// The pinned OpenBLAS.
    Open,
    /// The slow reference libraries that come with MLX, for comparison.
    Reference,
    /// A library of the user's: 32-bit integers, no prefix on its symbols.
    File(PathBuf),
}

impl Blas {
    fn parse(text: &str) -> Result<Self> {
        match text {
            "openblas" => Ok(Blas::Open),
            "reference" => Ok(Blas::Reference),
            path if Path::new(path).is_absolute() && Path::new(path).is_file() => Ok(Blas::File(path.into())),
            other => Err(Failure::new(format!("MLX_BLAS={other} is neither a known BLAS nor a file"))
                .remedy("use openblas, reference, or the absolute path of a BLAS + LAPACK library")),
        }
    }

    /// The setting that [`Blas::parse`] reads.
    fn name(&self) -> String {
        match self {
            Blas::Open => "openblas".into(),
            Blas::Reference => "reference".into(),
            Blas::File(path) => path.display().to_string(),
        }
    }

    /// A file name that tells it from every other.
    pub fn key(&self) -> String {
        match self {
            Blas::Open => format!("openblas-{}", crate::mlx::OPENBLAS),
            Blas::Reference => "reference".into(),
            Blas::File(path) => path.display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
        }
    }
}

/// What to set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The build of MLX.
    pub backend: Backend,
    /// Its BLAS.
    pub blas: Blas,
}

impl Choice {
    /// `MLX_BACKEND` and `MLX_BLAS`; for the one that is not set, what was chosen last; else the
    /// CPU build with OpenBLAS.
    pub fn find(mlx_dir: &Path) -> Result<Self> {
        let setting = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let memory = std::fs::read_to_string(mlx_dir.join(MEMORY)).unwrap_or_default();
        Self::resolve(setting("MLX_BACKEND").as_deref(), setting("MLX_BLAS").as_deref(), &memory, driver_version)
    }

    fn resolve(
        backend: Option<&str>,
        blas: Option<&str>,
        memory: &str,
        driver: impl Fn() -> Option<u32>,
    ) -> Result<Self> {
        let mut last = memory.lines();
        let (last_backend, last_blas) = (last.next().unwrap_or("cpu"), last.next().unwrap_or("openblas"));
        Ok(Choice {
            backend: Backend::parse(backend.unwrap_or(last_backend), driver)?,
            blas: Blas::parse(blas.unwrap_or(last_blas))?,
        })
    }

    /// Keeps the choice for the next time.
    pub fn remember(&self, mlx_dir: &Path) -> Result<()> {
        crate::mlx::write_if_new(&mlx_dir.join(MEMORY), &format!("{}\n{}\n", self.backend.name(), self.blas.name()))
    }
}

/// The major version of the NVIDIA driver, such as 580.
fn driver_version() -> Option<u32> {
    let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
    let text = command::output(Command::new("nvidia-smi").args(query)).ok()?;
    text.lines().next()?.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn resolve(backend: Option<&str>, memory: &str, driver: Option<u32>) -> Result<Choice> {
        Choice::resolve(backend, None, memory, || driver)
    }

    #[test]
    fn a_choice_holds_until_the_next_one() {
        assert_eq!(resolve(None, "", None).unwrap().backend, Backend::Cpu);
        assert_eq!(resolve(None, "cuda13\nopenblas\n", None).unwrap().backend, Backend::Cuda13);
        assert_eq!(resolve(Some("cpu"), "cuda13\nreference\n", None).unwrap().backend, Backend::Cpu);
        assert_eq!(resolve(Some("cpu"), "cuda13\nreference\n", None).unwrap().blas, Blas::Reference);
    }

    #[test]
    fn cuda_follows_the_driver() {
        assert_eq!(resolve(Some("cuda"), "", Some(580)).unwrap().backend, Backend::Cuda13);
        assert_eq!(resolve(Some("cuda"), "", Some(575)).unwrap().backend, Backend::Cuda12);
        for driver in [Some(470), None] {
            assert!(resolve(Some("cuda"), "", driver).unwrap_err().to_string().contains("to do:"));
        }
        assert_eq!(resolve(Some("cuda13"), "", None).unwrap().backend, Backend::Cuda13);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let e = resolve(Some("metal"), "", None).unwrap_err().to_string();
        assert!(e.contains("MLX_BACKEND=metal") && e.contains("cpu, cuda"), "{e}");
        let e = Choice::resolve(None, Some("/no/such/libblas.so"), "", || None).unwrap_err().to_string();
        assert!(e.contains("MLX_BLAS=/no/such/libblas.so"), "{e}");
    }

    #[test]
    fn keys_are_plain_and_distinct() {
        let a = Blas::File("/usr/lib/libopenblas.so.0".into()).key();
        let b = Blas::File("/usr/lib/libopenblas.so.1".into()).key();
        assert_ne!(a, b);
        assert!(a.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{a}");
    }
}
