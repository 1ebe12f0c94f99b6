//! Inputs the fuzz targets once found worth keeping, and those that once broke something, again and
//! without a fuzzer: `fuzz/corpus/TARGET/`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unsafe_code, reason = "tests")]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() > 10, "{} inputs in {}", inputs.len(), dir.display());
    for input in inputs {
        let bytes = std::fs::read(&input).unwrap();
        if let Err(panic) = std::panic::catch_unwind(|| run(&bytes)) {
            eprintln!("the input was {}", input.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn component() {
    replay("component", targets::component);
}

#[test]
fn options() {
    replay("options", targets::options);
}

#[test]
fn plan() {
    replay("plan", targets::plan);
}

#[test]
fn c_tables() {
    replay("c_tables", targets::c_tables);
}

#[test]
fn wire() {
    replay("wire", targets::wire);
}

#[test]
fn texts() {
    replay("texts", targets::texts);
}

/// Found by a target that wrapped modules in its own process: the packages of this module's description
/// depend on each other, and wit-component follows them until the stack is used up.
#[test]
fn a_module_that_crashes_the_compiler_is_a_fault() {
    use plastic_host::plugin::{FaultClass, Loader, Rules};
    let module = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/crashes/description-in-a-circle.wasm");
    let loader = Loader::new(Rules::default(), None).compiled_by(env!("CARGO_BIN_EXE_plastic-host").into());
    let fault = loader.evaluator(&module).err().unwrap();
    assert_eq!(fault.class, FaultClass::Load);
    assert!(fault.message.contains("the compiler was ended by signal"), "{fault}");
}
