//! What a native library says about itself, read from the file: nothing of it runs, since a library's
//! constructors run as soon as it is loaded.

use super::super::FaultClass;
use super::super::component::{API_MAJOR, Kind};
use super::{Failure, abi};
use object::{Architecture, Object, ObjectSection};

/// Whether a file begins like a native library: ELF, or Mach-O for 64 bits, either alone or several
/// in one.
pub fn is_library(bytes: &[u8]) -> bool {
    const MAGICS: [[u8; 4]; 3] = [*b"\x7fELF", [0xcf, 0xfa, 0xed, 0xfe], [0xca, 0xfe, 0xba, 0xbe]];
    MAGICS.iter().any(|m| bytes.starts_with(m))
}

/// The parts of the entry that are numbers.
pub struct Descriptor {
    /// What the plugin is.
    pub kind: Kind,
    /// API version it was built for.
    pub api: String,
}

/// Reads the entry from the file.
///
/// # Errors
/// [`FaultClass::Load`]: damaged, for another machine, no plugin; [`FaultClass::Version`]: built for
/// another version of the contract.
pub fn descriptor(bytes: &[u8]) -> Result<Descriptor, Failure> {
    let load = |message: String| Failure::plain(FaultClass::Load, message);
    let damaged = |e: object::Error| load(format!("is truncated or damaged ({e}); build or fetch it again"));
    let file = object::File::parse(bytes).map_err(damaged)?;
    check_machine(&file).map_err(load)?;
    let exports = file.exports().map_err(damaged)?;
    // Mach-O puts an underscore before every C name.
    let named = |name: &[u8]| name.strip_prefix(b"_").unwrap_or(name) == abi::ENTRY.as_bytes();
    let entry = exports.iter().find(|e| named(e.name()));
    let entry = entry.ok_or_else(|| {
        load(format!(
            "is a native library but no plugin: it does not export `{}`; build it with `plastic-host plugin build --native`, or see docs/native.md",
            abi::ENTRY
        ))
    })?;
    let at = entry.address();
    let data = file.sections().find_map(|s| s.data_range(at, 24).ok().flatten());
    // A library whose entry is made when it is loaded holds zeros here; it has no constant data.
    let numbers = data.map(|d| d.chunks_exact(4).map(number).collect::<Vec<u32>>());
    let numbers = numbers.ok_or_else(|| load(format!("holds no data at `{}`; it must be constant", abi::ENTRY)))?;
    match numbers[..] {
        [magic, major, size, min_minor, minor, kind] => check(magic, major, size, min_minor, minor, kind),
        _ => Err(load(format!("holds too little data at `{}`", abi::ENTRY))),
    }
}

fn number(bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(bytes);
    u32::from_le_bytes(four)
}

/// Checks the numbers of an entry, from the file or from memory.
///
/// # Errors
/// One sentence.
pub fn check(magic: u32, major: u32, size: u32, min_minor: u32, minor: u32, kind: u32) -> Result<Descriptor, Failure> {
    let load = |message: String| Err(Failure::plain(FaultClass::Load, message));
    let version = |message: String| Err(Failure::plain(FaultClass::Version, message));
    if magic != abi::MAGIC {
        let expected = abi::MAGIC;
        return load(format!(
            "exports `{}` with the magic {magic:#010x}, expected {expected:#010x}; is it a plugin?",
            abi::ENTRY
        ));
    }
    if major != abi::MAJOR {
        let remedy = match major > abi::MAJOR {
            true => "update plastic-host, or build the plugin against plastic_plugin.h 1.x",
            false => "build the plugin again against plastic_plugin.h 1.x",
        };
        return version(format!("was built for the C ABI {major}.{minor}, this host speaks {API_MAJOR}.x: {remedy}"));
    }
    let least = size_of::<abi::Entry>();
    if (size as usize) < least {
        return version(format!("exports an entry with a struct_size of {size}, expected at least {least}"));
    }
    if min_minor > abi::MINOR {
        return version(format!(
            "needs a host with the C ABI {major}.{min_minor} or newer, this one has {}.{}: update plastic-host",
            abi::MAJOR,
            abi::MINOR
        ));
    }
    let kind = match kind {
        abi::POLICY => Kind::Policy,
        abi::EVALUATOR => Kind::Evaluator,
        other => return load(format!("is a plugin of kind {other}; this host knows policies (1) and evaluators (2)")),
    };
    Ok(Descriptor { kind, api: format!("{major}.{minor}.0") })
}

/// The loader's own message about a library for another machine says little.
fn check_machine(file: &object::File<'_>) -> Result<(), String> {
    let ours = match std::env::consts::ARCH {
        "x86_64" => Architecture::X86_64,
        "aarch64" => Architecture::Aarch64,
        _ => return Ok(()),
    };
    match file.architecture() == ours && file.is_64() {
        true => Ok(()),
        false => Err(format!(
            "is a library for {:?}, this machine is {}; build it here",
            file.architecture(),
            std::env::consts::ARCH
        )),
    }
}
