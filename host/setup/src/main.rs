//! One command that makes mlx-rs 0.33 buildable on Linux.
//!
//!   cargo run --manifest-path provision/Cargo.toml -- <project-root> [--cuda12|--cuda13] [--ref-blas]
//!   MLX_BLAS=/path/to/libopenblas.so.0 ...   use that library instead of the PyPI one
//!
//! It writes <project-root>/.mlx/<key>/ (libraries, headers, bindings) and
//! <project-root>/.mlx/cargo.toml, which a committed .cargo/config.toml pulls in:
//!
//!   include = [{ path = "../.mlx/cargo.toml", optional = true }]
//!
//! Nothing happens on macOS: the override is keyed by a Linux target triple.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

type Res<T> = Result<T, Box<dyn std::error::Error>>;

/// What the recipe is pinned to; part of the directory key.
const RECIPE: &str = "1";
const MLX: &str = "0.32.2";
const OPENBLAS: &str = "0.3.34.481.3";
const LIBCLANG: &str = "18.1.1";

/// sha256 of the wheels, handed to pip so that it checks them.
const HASHES: &[(&str, &str)] = &[
    ("mlx-cpu x86_64", "fc5d31b90fc4f457b2f9614ed45651a567d22a6a11a03d114a90a4e10bdd8878"),
    ("mlx-cpu aarch64", "d0f94625588b51a878786dd51cec5617894ce586cf3c94645ce1b64e24c27c0b"),
    ("mlx-cuda-12 x86_64", "35445ead9724855826f310b9085d57137d0a2c5381cc293cb6d86b03bb4feadf"),
    ("mlx-cuda-12 aarch64", "c794c697dcd28e00a51ce8813189ece1a8c62559de7cc5e27803cc591f55df05"),
    ("mlx-cuda-13 x86_64", "335094ccd1c0c6dc3e09c8caba207c8180602bacc0c38ba20c1d81e9456ab394"),
    ("mlx-cuda-13 aarch64", "49b1a25df9021f3b519a534fd39a32a5cdbf93a1b265a31e59671c2d9fc9f4a2"),
    ("scipy-openblas32 x86_64", "0595f94cd58c1f8a0d90c975621f4587337a003916b1979e834ebdf2cb5d9504"),
    ("scipy-openblas32 aarch64", "e085dddbc5b9aa130f83def515d31c440e69f387a90c7e63b154a5575b4466bc"),
    ("libclang x86_64", "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b"),
    ("libclang aarch64", "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592"),
];

/// Every BLAS/LAPACK entry point libmlx.so 0.32.2 imports
/// (nm -D --undefined-only libmlx.so).
const BLAS_SYMBOLS: &[&str] = &[
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
/// Not imported by libmlx, but a host wants to call it.
const BLAS_EXTRA: &[&str] = &["openblas_set_num_threads", "openblas_get_num_threads"];

fn run(cmd: &mut Command) -> Res<String> {
    let out = cmd.output().map_err(|e| format!("{cmd:?}: {e}"))?;
    if !out.status.success() {
        return Err(format!(
            "{cmd:?}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
        .into());
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// CUDA wheels pull several GB of nvidia-* wheels; --target puts them where
/// libmlx.so's DT_RPATH ($ORIGIN/../../nvidia/*/lib) looks.  Unpinned: pip
/// resolves them.  (Not run here: no GPU.)
fn pip_install_with_deps(name: &str, version: &str, target: &Path) -> Res<()> {
    run(Command::new("python3")
        .args(["-m", "pip", "install", "-q", "--no-compile", "--only-binary", ":all:", "--target"])
        .arg(target)
        .arg(format!("{name}=={version}")))?;
    Ok(())
}

/// `pip install --target`: downloads, checks the hash, unpacks, caches.
/// (--target also works where PEP 668 forbids a plain `pip install`.)
fn pip_install(name: &str, version: &str, arch: &str, tmp: &Path, target: &Path) -> Res<()> {
    let key = format!("{name} {arch}");
    let hash = HASHES.iter().find(|h| h.0 == key).map(|h| h.1).ok_or("no hash pinned")?;
    let req = tmp.join(format!("{name}.txt"));
    fs::write(&req, format!("{name}=={version} --hash=sha256:{hash}\n"))?;
    run(Command::new("python3")
        .args(["-m", "pip", "install", "-q", "--no-deps", "--no-compile"])
        .args(["--only-binary", ":all:", "--require-hashes", "--target"])
        .arg(target)
        .arg("-r")
        .arg(req))?;
    Ok(())
}

/// The mlx-c sources travel inside the mlx-sys registry crate.
fn mlx_c_root(project: &Path, triple: &str) -> Res<PathBuf> {
    let text = run(Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--filter-platform", triple])
        .current_dir(project))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let pkg = json["packages"]
        .as_array()
        .and_then(|p| p.iter().find(|p| p["name"] == "mlx-sys"))
        .ok_or("the project does not depend on mlx-sys")?;
    if pkg["version"] != "0.7.0" {
        return Err(format!("recipe is for mlx-sys 0.7.0, found {}", pkg["version"]).into());
    }
    let manifest = Path::new(pkg["manifest_path"].as_str().ok_or("manifest_path")?);
    Ok(manifest.parent().ok_or("parent")?.join("src/mlx-c"))
}

/// All of mlx-c in one translation unit: 7 s instead of 34 s on two cores,
/// since parsing MLX's headers is nearly all the work.  No cmake needed.
fn build_mlx_c(c_root: &Path, include: &Path, native: &Path, tmp: &Path, triple: &str) -> Res<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(c_root.join("mlx/c"))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "cpp"))
        .collect();
    files.sort();
    files.push(native.join("linux_compat.cpp"));
    let unity: String = files.iter().map(|f| format!("#include \"{}\"\n", f.display())).collect();
    fs::write(tmp.join("mlxc_unity.cpp"), unity)?;
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .target(triple)
        .host(triple)
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .pic(true)
        .cpp_link_stdlib(None)
        .cargo_metadata(false)
        .out_dir(tmp)
        .include(c_root)
        .include(include)
        .flag("-include")
        .flag(native.join("format_compat.h"))
        .flag("-include")
        .flag(native.join("half.h"))
        .flag("-Wno-psabi")
        // error texts name the mlx-c source line: keep them short and machine independent
        .flag(format!("-ffile-prefix-map={}=mlx-c", c_root.display()))
        .file(tmp.join("mlxc_unity.cpp"))
        .try_compile("mlxc")?;
    Ok(())
}

fn generate_bindings(c_root: &Path, native: &Path, out: &Path) -> Res<()> {
    // The libclang wheel has no builtin headers (stddef.h ...); gcc's serve.
    let gcc_inc = run(Command::new("cc").arg("-print-file-name=include"))?;
    let mut headers: Vec<PathBuf> = fs::read_dir(c_root.join("mlx/c"))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "h"))
        .collect();
    headers.sort();
    // Same options as mlx-sys's own src/bindgen_config.rs.
    let mut b = bindgen::Builder::default()
        .rust_target("1.73.0".parse().map_err(|_| "rust target")?)
        .clang_args(["-include", &native.join("half.h").to_string_lossy()])
        .clang_arg(format!("-I{}", c_root.display()))
        .clang_args(["-idirafter", gcc_inc.trim()])
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    for h in &headers {
        b = b.header(h.to_string_lossy());
    }
    let text = b.generate()?.to_string();
    for need in ["fn mlx_array_item_float16", "struct __BindgenFloat16", "fn mlx_array_data_bfloat16"] {
        if !text.contains(need) {
            return Err(format!("bindings lack `{need}`").into());
        }
    }
    fs::write(out.join("bindings.rs"), text)?;
    Ok(())
}

/// libmlx.so asks for two libraries by (hashed) file name, found through its
/// DT_RPATH.  Put one library of ours under both names: a table of jumps into
/// OpenBLAS.  No link-order games, no rustflags, no system package.
fn install_openblas(wheel: &Path, libs: &Path, tmp: &Path, arch: &str) -> Res<()> {
    let so = wheel.join("scipy_openblas32/lib/libscipy_openblas.so");
    fs::copy(so, libs.join("libscipy_openblas.so"))?;
    let mut asm = String::from(".text\n");
    for s in BLAS_SYMBOLS.iter().chain(BLAS_EXTRA) {
        let jump = match arch {
            "x86_64" => format!("jmp *scipy_{s}@GOTPCREL(%rip)"),
            _ => format!("adrp x16, :got:scipy_{s}\n ldr x16, [x16, :got_lo12:scipy_{s}]\n br x16"),
        };
        asm += &format!(".globl {s}\n.type {s},%function\n{s}:\n {jump}\n.size {s}, .-{s}\n");
    }
    asm += ".section .note.GNU-stack,\"\",%progbits\n";
    let src = tmp.join("blas_jump.s");
    fs::write(&src, asm)?;
    let jump = libs.join("libmlx_blas.so");
    run(Command::new("cc")
        .args(["-shared", "-nostdlib", "-Wl,-soname,libmlx_blas.so", "-Wl,-z,defs"])
        .args(["-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN", "-o"])
        .arg(&jump)
        .arg(&src)
        .arg(libs.join("libscipy_openblas.so")))?;
    point_blas_at(libs, Path::new("libmlx_blas.so"))
}

/// Both names become symlinks to one file (same inode: the loader maps it once).
fn point_blas_at(libs: &Path, target: &Path) -> Res<()> {
    for e in fs::read_dir(libs)? {
        let p = e?.path();
        let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("libblas-") || name.starts_with("liblapack-") {
            fs::remove_file(&p)?;
            std::os::unix::fs::symlink(target, &p)?;
        } else if name.starts_with("libgfortran") || name.starts_with("libquadmath") {
            fs::remove_file(&p)?; // only the reference LAPACK needed them
        }
    }
    Ok(())
}

fn main() -> Res<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let flag = |f: &str| args.iter().any(|a| a == f);
    let project = args.iter().find(|a| !a.starts_with("--")).map_or(".", |s| s);
    let project = fs::canonicalize(project)?;
    if env::consts::OS != "linux" {
        println!("nothing to do: mlx-sys builds itself on {}", env::consts::OS);
        return Ok(());
    }
    let arch = env::consts::ARCH;
    let triple = format!("{arch}-unknown-linux-gnu");
    let (pkg, libs_dir) = match (flag("--cuda12"), flag("--cuda13")) {
        (true, _) => ("mlx-cuda-12", "mlx_cuda_12.libs"),
        (_, true) => ("mlx-cuda-13", "mlx_cuda_13.libs"),
        _ => ("mlx-cpu", "mlx_cpu.libs"),
    };
    let own_blas = env::var_os("MLX_BLAS").map(PathBuf::from);
    let blas = match (&own_blas, flag("--ref-blas")) {
        (Some(_), _) => "ownblas",
        (_, true) => "ref",
        _ => OPENBLAS,
    };
    // The key is in every path cargo sees, so a changed recipe rebuilds mlx-sys.
    let key = format!("{pkg}-{MLX}-{blas}-r{RECIPE}");
    let root = project.join(".mlx").join(&key);
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("native");
    let (wheel, tmp, lib, out) = (root.join("wheel"), root.join("tmp"), root.join("lib"), root.join("out"));
    if !root.join("done").exists() {
        let _ = fs::remove_dir_all(&root);
        for d in [&tmp, &lib, &out] {
            fs::create_dir_all(d)?;
        }
        let t = std::time::Instant::now();
        let step = |s: &str| eprintln!("[{:6.1?}] {s}", t.elapsed());
        let c_root = mlx_c_root(&project, &triple)?;
        step("mlx-c sources located");
        if pkg == "mlx-cpu" {
            pip_install(pkg, MLX, arch, &tmp, &wheel)?;
        } else {
            pip_install_with_deps(pkg, MLX, &wheel)?;
        }
        step("MLX wheel");
        if let Some(path) = &own_blas {
            point_blas_at(&wheel.join(libs_dir), path)?; // symbols unprefixed: no jump table needed
        } else if blas != "ref" {
            pip_install("scipy-openblas32", OPENBLAS, arch, &tmp, &tmp.join("py"))?;
            install_openblas(&tmp.join("py"), &wheel.join(libs_dir), &tmp, arch)?;
            step("OpenBLAS");
        }
        build_mlx_c(&c_root, &wheel.join("mlx/include"), &native, &tmp, &triple)?;
        fs::rename(tmp.join("libmlxc.a"), lib.join("libmlxc.a"))?;
        step("libmlxc.a");
        if env::var_os("LIBCLANG_PATH").is_none() {
            pip_install("libclang", LIBCLANG, arch, &tmp, &tmp.join("py"))?;
            env::set_var("LIBCLANG_PATH", tmp.join("py/clang/native"));
        }
        generate_bindings(&c_root, &native, &out)?;
        step("bindings.rs");
        fs::write(root.join("mlx_c_root"), c_root.to_string_lossy().as_bytes())?;
        fs::remove_dir_all(&tmp)?;
        fs::write(root.join("done"), "")?;
    }
    let c_root = fs::read_to_string(root.join("mlx_c_root"))?;
    let r = root.display();
    // `include`, `defines` and `version` become DEP_MLX_INCLUDE & co. for
    // dependents with a build script, exactly as upstream's build.rs does.
    // $ORIGIN/../lib/mlx/lib first: an installed tree bin/ + lib/mlx/lib +
    // lib/mlx_cpu.libs works anywhere; the absolute path serves target/.
    fs::write(
        project.join(".mlx/cargo.toml"),
        format!(
            r#"# Generated; do not edit, do not commit.
[target.{triple}.mlx]
rustc-link-search = ["native={r}/lib", "native={r}/wheel/mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = {{ OUT_DIR = "{r}/out" }}
include = "{r}/wheel/mlx/include:{c_root}"
defines = ""
version = "{MLX}"
libdir = "{r}/wheel/mlx/lib"
"#
        ),
    )?;
    println!("{} ready", root.display());
    Ok(())
}
