//! A fast BLAS under MLX.
//!
//! libmlx.so asks for its BLAS and LAPACK by file name and finds them beside itself. Both names
//! become links to one library of ours: a table of jumps into OpenBLAS, whose symbols carry a
//! prefix. No link order, no compiler flag and no system package is involved, and the loader maps
//! the one file once.

use crate::backend::Blas;
use crate::command;
use crate::failure::{Doing, Failure, Result};
use crate::wheel;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Every BLAS and LAPACK function libmlx.so 0.32.2 imports (`nm -D --undefined-only libmlx.so`).
const IMPORTED: &[&str] = &[
    "cblas_sgemm",
    "cblas_dgemm",
    "cblas_cgemm",
    "sgeev_",
    "dgeev_",
    "cgeev_",
    "ssyevd_",
    "dsyevd_",
    "cheevd_",
    "sgeqrf_",
    "dgeqrf_",
    "sorgqr_",
    "dorgqr_",
    "sgesdd_",
    "dgesdd_",
    "cgesdd_",
    "sgetrf_",
    "dgetrf_",
    "sgetri_",
    "dgetri_",
    "spotrf_",
    "dpotrf_",
    "strtri_",
    "dtrtri_",
];

/// What the host itself looks up: threads, and what `doctor` reports.
const FOR_THE_HOST: &[&str] = &[
    "openblas_set_num_threads",
    "openblas_get_num_threads",
    "openblas_get_num_procs",
    "openblas_get_config",
    "openblas_get_corename",
    "openblas_get_parallel",
];

/// The name of our library.
const TABLE: &str = "libmlx_blas.so";

/// Puts `blas` under the MLX unpacked in `wheel_dir`; `tmp` is for passing files.
pub fn install(blas: &Blas, wheel_dir: &Path, tmp: &Path) -> Result<()> {
    let libs = libs_dir(wheel_dir)?;
    match blas {
        Blas::Reference => Ok(()),
        Blas::File(path) => point_at(&libs, path),
        Blas::Open => {
            let py = tmp.join("openblas");
            wheel::install(&wheel::OPENBLAS, &py)?;
            let (from, to) = (py.join("scipy_openblas32/lib/libscipy_openblas.so"), libs.join("libscipy_openblas.so"));
            fs::copy(&from, &to).doing(format_args!("copying {}", from.display()))?;
            link_table(&libs, &to, tmp)?;
            point_at(&libs, Path::new(TABLE))
        }
    }
}

/// The directory of the wheel that holds the reference libraries, such as `mlx_cpu.libs`.
fn libs_dir(wheel_dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(wheel_dir).doing(format_args!("reading {}", wheel_dir.display()))?;
    entries
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|x| x == "libs"))
        .ok_or_else(|| Failure::new(format!("{} has no *.libs directory", wheel_dir.display())))
}

/// Assembles and links the jump table.
fn link_table(libs: &Path, openblas: &Path, tmp: &Path) -> Result<()> {
    let source = tmp.join("blas_table.s");
    fs::write(&source, table(std::env::consts::ARCH)?).doing(format_args!("writing {}", source.display()))?;
    command::output(
        command::program("CC", "cc")
            // -z defs: a function that this OpenBLAS lacks fails here, not at the first call.
            .args(["-shared", "-nostdlib", "-Wl,-soname,libmlx_blas.so", "-Wl,-z,defs"])
            .args(["-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN", "-o"])
            .arg(libs.join(TABLE))
            .arg(&source)
            .arg(openblas),
    )
    .map(drop)
}

/// The assembly text of the jump table.
fn table(arch: &str) -> Result<String> {
    let mut text = String::from(".text\n");
    for name in IMPORTED.iter().chain(FOR_THE_HOST) {
        let jump = match arch {
            "x86_64" => format!("jmp *scipy_{name}@GOTPCREL(%rip)"),
            "aarch64" => {
                format!("adrp x16, :got:scipy_{name}\n ldr x16, [x16, :got_lo12:scipy_{name}]\n br x16")
            }
            other => return Err(crate::mlx::unsupported(other)),
        };
        text += &format!(".globl {name}\n.type {name},%function\n{name}:\n {jump}\n.size {name}, .-{name}\n");
    }
    text += ".section .note.GNU-stack,\"\",%progbits\n";
    Ok(text)
}

/// Makes both names that libmlx.so asks for links to `library`.
fn point_at(libs: &Path, library: &Path) -> Result<()> {
    let mut replaced = 0;
    for entry in fs::read_dir(libs).doing(format_args!("reading {}", libs.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let remove = || fs::remove_file(entry.path()).doing(format_args!("removing {name}"));
        if name.starts_with("libblas-") || name.starts_with("liblapack-") {
            remove()?;
            symlink(library, entry.path()).doing(format_args!("linking {name}"))?;
            replaced += 1;
        } else if name.starts_with("libgfortran") || name.starts_with("libquadmath") {
            remove()?; // only the reference LAPACK needed them
        }
    }
    match replaced {
        2 => Ok(()),
        n => Err(Failure::new(format!("{}: expected one libblas and one liblapack, found {n}", libs.display()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_table_forwards_every_function() {
        for (arch, jump) in [("x86_64", "jmp *scipy_sgesdd_@"), ("aarch64", ":got_lo12:scipy_sgesdd_]")] {
            let text = table(arch).unwrap();
            assert!(text.contains(jump), "{arch}");
            assert_eq!(text.matches(".globl ").count(), IMPORTED.len() + FOR_THE_HOST.len());
        }
        assert!(table("riscv64").is_err());
    }

    #[test]
    fn both_names_become_links_and_a_strange_wheel_is_refused() {
        let dir = std::env::temp_dir().join(format!("plastic-setup-blas-{}", std::process::id()));
        let libs = dir.join("mlx_cpu.libs");
        fs::create_dir_all(&libs).unwrap();
        for name in ["libblas-1.so", "liblapack-2.so", "libgfortran-3.so", "libother.so"] {
            fs::write(libs.join(name), "old").unwrap();
        }
        point_at(&libs_dir(&dir).unwrap(), Path::new("libmlx_blas.so")).unwrap();
        for name in ["libblas-1.so", "liblapack-2.so"] {
            assert_eq!(fs::read_link(libs.join(name)).unwrap(), Path::new("libmlx_blas.so"));
        }
        assert!(!libs.join("libgfortran-3.so").exists() && libs.join("libother.so").exists());
        fs::remove_file(libs.join("libblas-1.so")).unwrap();
        assert!(point_at(&libs, Path::new("x")).unwrap_err().to_string().contains("found 1"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
