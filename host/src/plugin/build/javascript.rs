//! JavaScript: componentize-qjs puts QuickJS, started and with the plugin evaluated, into a component.

use super::project::Project;
use super::sdk::{DIRECTORY, WIT, put, world};
use super::{BuildError, compile, read, scratch, tools};
use crate::plugin::Kind;
use crate::plugin::component::API_VERSION;
use std::path::Path;

const POLICY: &str = include_str!("../../../../plugin-api/javascript/policy_entry.js");
const EVALUATOR: &str = include_str!("../../../../plugin-api/javascript/evaluator_entry.js");

/// Builds the project in `dir`, whose SDK is in place.
pub(super) fn build(dir: &Path, project: &Project, progress: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BuildError> {
    let scratch = scratch()?;
    let (wit, out) = (scratch.path().join("rank.wit"), scratch.path().join("out.wasm"));
    put(&wit, WIT)?;
    // In the project, because modules are found from where the first one lies.
    let entry = dir.join(DIRECTORY).join("entry.js");
    put(&entry, &self::entry(project))?;
    let mut tool = tools::COMPONENTIZE_QJS.command(progress)?;
    tool.arg("--wit").arg(&wit).args(["--world", world(project.kind), "--sync", "--stub-wasi", "--js"]).arg(&entry);
    tool.arg("--module-root").arg(dir).arg("--output").arg(&out);
    compile(&mut tool, dir, "componentize-qjs", tools::NO_NODE)?;
    read(&out)
}

/// The module that exports the contract's functions.
fn entry(project: &Project) -> String {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let template = if project.kind == Kind::Policy { POLICY } else { EVALUATOR };
    template
        .replace("@API@", API_VERSION)
        .replace("\"@SOURCE@\"", &text(&format!("../{}", project.source)))
        .replace("\"@NAME@\"", &text(&project.name))
        .replace("\"@VERSION@\"", &text(&project.version))
        .replace("\"@SUMMARY@\"", &text(&project.summary))
}
