//! Python: componentize-py puts CPython, started and with the plugin imported, into a component.

use super::project::Project;
use super::sdk::{WIT, put, world};
use super::{BuildError, compile, read, scratch, tools};
use crate::plugin::Kind;
use std::path::Path;

const POLICY: &str = include_str!("../../../../plugin-api/python/policy_entry.py");
const EVALUATOR: &str = include_str!("../../../../plugin-api/python/evaluator_entry.py");

/// Builds the project in `dir`, whose SDK is in place.
pub(super) fn build(dir: &Path, project: &Project, progress: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BuildError> {
    let module = project.source.strip_suffix(".py").map(|m| m.replace('/', "."));
    let module = module.ok_or_else(|| BuildError::Manifest {
        path: dir.join(super::project::MANIFEST),
        why: format!("source is `{}`, expected a .py file", project.source),
    })?;
    let scratch = scratch()?;
    let (wit, entry, out) = (scratch.path().join("wit"), scratch.path().join("entry"), scratch.path().join("out.wasm"));
    put(&wit.join("rank.wit"), WIT)?;
    put(&entry.join("plastic_entry.py"), if project.kind == Kind::Policy { POLICY } else { EVALUATOR })?;
    put(&entry.join("plastic_identity.py"), &identity(project, &module))?;
    let mut tool = tools::COMPONENTIZE_PY.command(progress)?;
    tool.args(["-c", "import sys, componentize_py; sys.exit(componentize_py.script())", "--quiet"]);
    tool.arg("--wit-path").arg(&wit).args(["--world", world(project.kind), "componentize", "plastic_entry"]);
    tool.arg("--python-path").arg(dir).arg("--python-path").arg(&entry);
    // Without a system interface: the host offers none.
    tool.arg("--stub-wasi").arg("--output").arg(&out);
    compile(&mut tool, dir, "componentize-py", tools::NO_PYTHON)?;
    read(&out)
}

/// What the component says about itself, as a module. JSON's strings are Python's too.
fn identity(project: &Project, module: &str) -> String {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    format!(
        "import {module} as plugin\n\nNAME = {}\nVERSION = {}\nSUMMARY = {}\n",
        text(&project.name),
        text(&project.version),
        text(&project.summary)
    )
}
