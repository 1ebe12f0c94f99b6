//! Reading a plugin file without running or compiling it: what it is, which API it was built for,
//! what it imports. Bare core modules, as `cargo build` leaves them, are wrapped into components.

use super::limits::{Limits, size};
use super::{Carrier, Fault, FaultClass, Grant, grants, native, text};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentType, ComponentTypeRef,
    InstanceTypeDeclaration, Parser, Payload,
};

/// Major version of the contract this host speaks.
pub const API_MAJOR: u64 = 1;
/// The version of the contract this host was built with.
pub const API_VERSION: &str = "1.0.0";

/// Most that a message says about what stands in a file.
const MESSAGE_BYTES: usize = 4 << 10;

pub(super) const PACKAGE: &str = "plastic:rank/";

/// The two kinds of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Decides which rank components sleep.
    Policy,
    /// Judges the changed model.
    Evaluator,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Policy => "policy",
            Kind::Evaluator => "evaluator",
        })
    }
}

/// A plugin file that was read, not yet compiled.
#[derive(Debug)]
pub struct Artifact {
    /// The file as named by the user.
    pub path: PathBuf,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// What carries it.
    pub carrier: Carrier,
    /// What it is.
    pub kind: Kind,
    /// API version it was built for.
    pub api: String,
    /// Interfaces it imports, as written in the file.
    pub imports: Vec<String>,
    /// Of what the operator grants, what it makes use of.
    pub grants: Vec<Grant>,
    /// Bytes of the file.
    pub size: u64,
    /// Built on the system interface.
    pub(super) is_wasi: bool,
    bytes: Vec<u8>,
}

impl Artifact {
    /// Reads a file and checks what can be checked without compiling it.
    ///
    /// # Errors
    /// [`FaultClass::Load`] where the file cannot be read, is no WebAssembly, is damaged, is no
    /// plugin, or imports anything but the contract and what is granted; [`FaultClass::Version`] where it was built for
    /// another major version of the contract.
    pub fn read(path: &Path, limits: &Limits) -> Result<Artifact, Fault> {
        let fault = |message| Fault { plugin: path.display().to_string(), class: FaultClass::Load, message };
        Artifact::from_bytes(path, bytes(path, limits).map_err(fault)?, limits)
    }

    /// The same for the content of a file of that name.
    ///
    /// # Errors
    /// As [`Artifact::read`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>, limits: &Limits) -> Result<Artifact, Fault> {
        // Messages name what stands in the file, which may be anything.
        let fault = |class, message: String| {
            let message = text::clean(&message, MESSAGE_BYTES);
            Fault { plugin: path.display().to_string(), class, message }
        };
        if native::file::is_library(&bytes) {
            let native::file::Descriptor { kind, api } =
                native::file::descriptor(&bytes).map_err(|f| f.of(&path.display().to_string()))?;
            let (path, sha256, size) = (path.to_owned(), hex(&Sha256::digest(&bytes)), bytes.len() as u64);
            let (carrier, imports, grants) = (Carrier::Native, Vec::new(), Vec::new());
            return Ok(Artifact { path, sha256, carrier, kind, api, imports, grants, is_wasi: false, size, bytes });
        }
        let outline = Outline::of(&bytes).map_err(|m| fault(FaultClass::Load, m))?;
        let grants = grants::permit(&outline.imports, &limits.grants).map_err(|m| fault(FaultClass::Load, m))?;
        let (kind, api) = outline.contract().map_err(|m| fault(FaultClass::Load, m))?;
        check_version(&api).map_err(|m| fault(FaultClass::Version, m))?;
        Ok(Artifact {
            path: path.to_owned(),
            sha256: hex(&Sha256::digest(&bytes)),
            carrier: Carrier::Wasm,
            kind,
            api,
            grants,
            is_wasi: grants::is_wasi(&outline.imports),
            imports: outline.imports.into_iter().map(|i| text::clean(&i.name, MESSAGE_BYTES)).collect(),
            size: bytes.len() as u64,
            bytes,
        })
    }

    /// The file's bytes, those that were hashed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The component to compile.
    ///
    /// # Errors
    /// [`FaultClass::Load`] where a core module cannot be wrapped.
    pub fn component(&self) -> Result<std::borrow::Cow<'_, [u8]>, Fault> {
        component(&self.bytes).map_err(|e| self.fault(FaultClass::Load, text::clean(&e, MESSAGE_BYTES)))
    }

    /// A fault of this plugin.
    pub(super) fn fault(&self, class: FaultClass, message: String) -> Fault {
        Fault { plugin: self.path.display().to_string(), class, message }
    }
}

/// The bytes where they are a component, the component around them where they are a core module.
///
/// # Errors
/// As [`encode`].
pub(super) fn component(bytes: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, String> {
    match Parser::is_core_wasm(bytes) {
        true => encode(bytes).map(Into::into),
        false => Ok(bytes.into()),
    }
}

/// Wraps a core module, which carries the description of its world, into a component.
///
/// # Errors
/// A sentence: what the module lacks.
pub fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    wit_component::ComponentEncoder::default()
        .module(module)
        .and_then(|e| e.validate(true).encode())
        .map_err(|e| format!("the module does not make a component: {e:#}; build it with the plastic-plugin SDK"))
}

/// Reads the file, no more of it than the limit allows.
fn bytes(path: &Path, limits: &Limits) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err("is a directory; name the .wasm file in it, or build it with `plastic-host plugin build`".into());
    }
    let mut bytes = Vec::new();
    file.take(limits.file_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    match bytes.len() as u64 > limits.file_bytes {
        true => Err(format!("is larger than {}, the limit (file_bytes)", size(limits.file_bytes as usize))),
        false => Ok(bytes),
    }
}

/// An interface a plugin imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// As written in the file.
    pub name: String,
    /// False where it is imported for the sake of its types alone.
    pub has_functions: bool,
}

/// Names of the outermost imports and exports.
struct Outline {
    is_module: bool,
    imports: Vec<Import>,
    exports: Vec<String>,
}

impl Outline {
    fn of(bytes: &[u8]) -> Result<Outline, String> {
        if !bytes.starts_with(b"\0asm") {
            return Err(match bytes.is_empty() {
                true => "is empty".into(),
                false => "is not WebAssembly; a plugin is a .wasm file, made by `plastic-host plugin build`".into(),
            });
        }
        Outline::read(bytes).map_err(|e| format!("is truncated or damaged ({e}); build or fetch it again"))
    }

    fn read(bytes: &[u8]) -> Result<Outline, wasmparser::BinaryReaderError> {
        let mut outline = Outline { is_module: Parser::is_core_wasm(bytes), imports: Vec::new(), exports: Vec::new() };
        // By index, whether a type is an instance without functions.
        let mut types_only = Vec::new();
        let mut depth = 0u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ImportSection(s) if depth == 0 => {
                    for import in s.into_imports() {
                        outline.imports.push(Import { name: import?.module.to_owned(), has_functions: true });
                    }
                }
                Payload::ExportSection(s) if depth == 0 => {
                    for export in s {
                        outline.exports.push(export?.name.to_owned());
                    }
                }
                Payload::ComponentTypeSection(s) if depth == 0 => {
                    for ty in s {
                        types_only.push(is_types_only(&ty?));
                    }
                }
                Payload::ComponentAliasSection(s) if depth == 0 => {
                    for alias in s {
                        types_only.extend(is_type(&alias?).then_some(false));
                    }
                }
                Payload::ComponentImportSection(s) if depth == 0 => {
                    for import in s {
                        let import = import?;
                        let has_functions = match import.ty {
                            ComponentTypeRef::Instance(i) => types_only.get(i as usize) != Some(&true),
                            _ => true,
                        };
                        types_only.extend(matches!(import.ty, ComponentTypeRef::Type(_)).then_some(false));
                        outline.imports.push(Import { name: import.name.name.to_owned(), has_functions });
                    }
                }
                Payload::ComponentExportSection(s) if depth == 0 => {
                    for export in s {
                        let export = export?;
                        types_only.extend((export.kind == ComponentExternalKind::Type).then_some(false));
                        outline.exports.push(export.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        outline.imports.sort_by(|a, b| a.name.cmp(&b.name));
        outline.imports.dedup();
        Ok(outline)
    }

    /// Kind and API version, from the name of the exported interface.
    fn contract(&self) -> Result<(Kind, String), String> {
        for (kind, interface) in [(Kind::Policy, "policy@"), (Kind::Evaluator, "judge@")] {
            for export in &self.exports {
                if let Some(version) = export.strip_prefix(PACKAGE).and_then(|e| e.strip_prefix(interface)) {
                    // A core module exports functions: `plastic:rank/policy@1.0.0#decide`.
                    let version = version.split('#').next().unwrap_or_default();
                    return Ok((kind, version.to_owned()));
                }
            }
        }
        let what = if self.is_module { "module" } else { "component" };
        Err(format!(
            "is a WebAssembly {what} but no plugin: it exports neither plastic:rank/policy nor plastic:rank/judge"
        ))
    }
}

/// Whether the type is an instance that has types to give, and nothing else.
fn is_types_only(ty: &ComponentType) -> bool {
    let ComponentType::Instance(parts) = ty else { return false };
    let gives = |part: &InstanceTypeDeclaration| match part {
        InstanceTypeDeclaration::Export { ty, .. } => !matches!(ty, ComponentTypeRef::Type(_)),
        _ => false,
    };
    !parts.iter().any(gives)
}

/// Whether the alias adds a type.
fn is_type(alias: &ComponentAlias) -> bool {
    match alias {
        ComponentAlias::InstanceExport { kind, .. } => *kind == ComponentExternalKind::Type,
        ComponentAlias::Outer { kind, .. } => *kind == ComponentOuterAliasKind::Type,
        ComponentAlias::CoreInstanceExport { .. } => false,
    }
}

/// Every minor version of the host's major version is welcome.
fn check_version(api: &str) -> Result<(), String> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| n.to_string() == text);
    let numbers: Option<Vec<u64>> = api.split('.').map(number).collect();
    let major = numbers.filter(|n| n.len() == 3).and_then(|n| n.first().copied());
    match major {
        Some(API_MAJOR) => Ok(()),
        Some(m) if m > API_MAJOR => Err(format!(
            "was built for plastic:rank {api}, this host speaks {API_MAJOR}.x: update plastic-host, or build the plugin with plastic-plugin {API_MAJOR}.x"
        )),
        Some(_) => Err(format!(
            "was built for plastic:rank {api}, this host speaks {API_MAJOR}.x: build the plugin again with plastic-plugin {API_MAJOR}.x"
        )),
        None => {
            Err(format!("names the API version `{api}`, which is none; build it with plastic-plugin {API_MAJOR}.x"))
        }
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(wat: &str) -> Result<Artifact, Fault> {
        Artifact::from_bytes(Path::new("p.wasm"), wat::parse_str(wat).unwrap(), &Limits::default())
    }

    #[test]
    fn names_from_the_file_are_no_terminal_commands() {
        let import =
            read(r#"(module (import "\1b]0;title\07" "f" (func)) (func (export "plastic:rank/policy@1.0.0#x")))"#);
        let message = import.unwrap_err().message;
        assert!(message.contains("]0;title") && !message.contains(char::is_control), "{message:?}");
        let version = read(r#"(module (func (export "plastic:rank/policy@1.\1b[31m#x")))"#).unwrap_err();
        assert_eq!(version.class, FaultClass::Version);
        assert!(!version.message.contains(char::is_control), "{:?}", version.message);
    }

    #[test]
    fn a_version_is_three_numbers() {
        assert!(["1.0.0", "1.12.3"].iter().all(|v| check_version(v).is_ok()));
        for version in ["01.0.0", "1..0", "1.0", "1.0.0.0", "+1.0.0", "1.0.0-x", ""] {
            assert!(check_version(version).unwrap_err().contains("which is none"), "{version}");
        }
    }
}
