//! Which plugins are let in, from outside: the path, the lock, signatures.
//!
//! Covers: names and paths, shadowing and broken files on the path, `plugin list|lock|keygen|sign|verify`,
//! refusals of `--locked`, `--trust` and `--signed` before a model is loaded, tampering with plugins,
//! signatures and locks, and a signature made by minisign itself.

use plastic_tests::{Ran, Scratch, host, ran, root};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user of their own: nothing of this machine's plugins, locks and keys is seen, or touched.
struct User(Scratch);

impl User {
    fn new(name: &str) -> User {
        let user = User(Scratch::new(name));
        std::fs::create_dir_all(user.0.path("home")).expect("a home");
        std::fs::create_dir_all(user.0.path("work/plugins")).expect("a place to work");
        user
    }

    fn command(&self) -> Command {
        let mut command = host();
        command.current_dir(self.0.path("work"));
        for name in ["PLASTIC_PLUGIN_PATH", "PLASTIC_HOME", "PLASTIC_KEY_PASSWORD", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
        {
            command.env_remove(name);
        }
        command.env("HOME", self.0.path("home")).env("PLASTIC_CACHE", root().join("target/tests-cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(self.command().args(args))
    }

    /// Runs, expects success.
    fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}\n{}\n{}", ran.out, ran.err);
        ran
    }

    fn at(&self, path: &str) -> PathBuf {
        PathBuf::from(self.0.path("work")).join(path)
    }

    /// A plugin of this repository under a name of its own, in the working directory.
    fn plugin(&self, which: &str, to: &str) {
        let from = root().join(format!("plugins/{which}.wasm"));
        let to = self.at(to);
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
        std::fs::copy(&from, to).unwrap_or_else(|e| panic!("{}: {e}; run `make plugins`", from.display()));
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.at(path), bytes).expect("a file");
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).expect("a text")
    }

    /// Where trusted keys lie, on every system.
    fn trust(&self, key: &str) {
        for dir in [".config", "Library/Preferences"] {
            let dir = Path::new(&self.0.path("home")).join(dir).join("plastic-host/trusted_keys");
            std::fs::create_dir_all(&dir).expect("a directory");
            std::fs::copy(self.at(key), dir.join(Path::new(key).file_name().expect("a name"))).expect("a key");
        }
    }

    fn list(&self, more: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = ["plugin", "list", "--json"].iter().chain(more).copied().collect();
        self.ok(&args).json()["plugins"].as_array().expect("plugins").clone()
    }
}

fn row<'a>(rows: &'a [Value], file: &str) -> &'a Value {
    rows.iter().find(|r| r["file"].as_str().is_some_and(|f| f.ends_with(file))).unwrap_or_else(|| panic!("{file}"))
}

/// Flips one bit in the middle of a text or binary file.
fn tamper(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn a_name_is_looked_up_along_the_path() {
    let u = User::new("path");
    u.plugin("energy", "first/mine.wasm");
    u.plugin("entropy", "plugins/mine.wasm");
    u.plugin("plateau", "plugins/energy.wasm");
    let name_of = |name: &str| {
        let ran =
            ran(u.command().env("PLASTIC_PLUGIN_PATH", "first:nowhere:").args(["plugin", "inspect", name, "--json"]));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.json()["name"].as_str().expect("a name").to_owned()
    };
    assert_eq!(name_of("mine"), "energy", "the first directory wins");
    assert_eq!(name_of("mine.wasm"), "energy");
    assert_eq!(name_of("plugins/mine.wasm"), "entropy", "a path is a path");
    assert_eq!(name_of("energy"), "plateau", "a file's name goes before what a plugin calls itself");
    assert_eq!(name_of("entropy"), "entropy", "what a plugin calls itself");
    u.run(&["plugin", "inspect", "enrgy"]).refuses(1, "did you mean energy");
    u.run(&["--policy", "enrgy"]).refuses(1, "looked in plugins");
    for name in ["../energy", "..", "no/such/energy", "/energy"] {
        u.run(&["plugin", "inspect", name]).refuses(1, "no such file");
    }
    let shipped = ran(u.command().args(["plugin", "inspect", "water-fill.wasm"]));
    assert_eq!(shipped.code, Some(0), "the installation's is on the path: {}", shipped.err);
}

#[test]
fn two_plugins_that_call_themselves_alike_are_an_error() {
    let u = User::new("alike");
    u.plugin("energy", "only/a.wasm");
    u.plugin("energy", "only/b.wasm");
    // The copies' own name is a file's name in the installation; another name has to stand in for it.
    for file in ["only/a.wasm", "only/b.wasm"] {
        let mut bytes = std::fs::read(u.at(file)).expect("a plugin");
        let at = bytes.windows(6).position(|w| w == b"energy");
        assert!(at.is_some(), "the plugin holds its name");
        let mut i = 0;
        while i + 6 <= bytes.len() {
            if &bytes[i..i + 6] == b"energy" {
                bytes[i..i + 6].copy_from_slice(b"enargy");
            }
            i += 1;
        }
        std::fs::write(u.at(file), bytes).expect("a plugin");
    }
    let ran = ran(u.command().env("PLASTIC_PLUGIN_PATH", "only").args(["plugin", "inspect", "enargy"]));
    ran.refuses(1, "2 plugins in only call themselves so");
    assert!(ran.err.contains("a.wasm") && ran.err.contains("b.wasm"), "{}", ran.err);
}

#[test]
fn everything_on_the_path_is_listed_and_nothing_broken_stops_the_list() {
    let u = User::new("list");
    u.plugin("energy", "plugins/energy.wasm");
    u.plugin("perplexity", "plugins/judge.wasm");
    u.write("plugins/broken.wasm", b"\0asm rubbish");
    u.write("plugins/empty.wasm", b"");
    // Loaded, this would be an error of the system's loader; it must not even be tried.
    u.write("plugins/native.so", b"not a library");
    std::fs::create_dir(u.at("plugins/folder.wasm")).expect("a directory");
    std::fs::create_dir(u.at("plugins/crate")).expect("a directory");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("loop.wasm", u.at("plugins/loop.wasm")).expect("a link");
        let pipe = Command::new("mkfifo").arg(u.at("plugins/pipe.wasm")).status().expect("mkfifo");
        assert!(pipe.success());
    }
    let rows = u.list(&[]);
    let energy = row(&rows, "plugins/energy.wasm");
    assert_eq!(
        (&energy["name"], &energy["kind"], &energy["problem"]),
        (&"energy".into(), &"policy".into(), &Value::Null)
    );
    assert_eq!((&energy["carrier"], &energy["signature"]["state"]), (&"wasm".into(), &"unsigned".into()));
    assert_eq!(energy["sha256"].as_str().expect("a digest").len(), 64);
    assert_eq!(row(&rows, "plugins/judge.wasm")["name"], "perplexity");
    assert_eq!(row(&rows, "native.so")["carrier"], "native");
    assert_eq!(row(&rows, "native.so")["problem"], Value::Null);
    for (file, problem) in [("broken.wasm", "damaged"), ("empty.wasm", "empty"), ("folder.wasm", "directory")] {
        let found = row(&rows, file)["problem"].as_str().expect("a problem");
        assert!(found.contains(problem), "{found}");
    }
    #[cfg(unix)]
    for file in ["loop.wasm", "pipe.wasm"] {
        assert!(row(&rows, file)["problem"].is_string());
    }
    let shipped = rows.iter().filter(|r| r["shadowed_by"] == "plugins/energy.wasm");
    assert_eq!(shipped.count(), 1, "the installation's energy is shadowed");
    let judges = u.list(&["--kind", "evaluator"]);
    assert!(judges.iter().all(|r| r["kind"] == "evaluator") && !judges.is_empty());
    assert_eq!(row(&u.list(&["--fast"]), "plugins/judge.wasm")["name"], "judge", "not asked");
    u.write("plastic.lock", b"version = 7");
    let refused = u.list(&["--locked"]);
    assert!(refused.iter().all(|r| r["problem"].is_string()), "a damaged lock lets nothing in");
    let text = u.ok(&["plugin", "list"]).out;
    assert!(text.contains("plugins/broken.wasm: cannot be loaded: is truncated or damaged"), "{text}");
    assert!(text.contains("shadowed by plugins/energy.wasm"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let u = User::new("unreadable");
    u.plugin("energy", "plugins/energy.wasm");
    u.write("file", b"");
    let ran = ran(u.command().env("PLASTIC_PLUGIN_PATH", "file").args(["plugin", "list"]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("file: Not a directory") && ran.out.contains("energy.wasm"), "{}", ran.out);
}

#[test]
fn a_lock_holds_plugins_by_content() {
    let u = User::new("lock");
    u.plugin("energy", "plugins/energy.wasm");
    u.plugin("perplexity", "plugins/perplexity.wasm");
    u.plugin("plateau", "plugins/plateau.wasm");
    let policy = ["--policy", "energy", "--base", "no-such-model", "--locked"];
    u.run(&policy).refuses(1, "plastic.lock: there is no such lock");
    u.run(&["plugin", "lock"]).refuses(1, "there is no such lock");
    let added = u.ok(&["plugin", "lock", "energy", "--json"]).json();
    assert_eq!(
        (&added["changes"][0]["change"], &added["plugins"][0]["file"]),
        (&"added".into(), &"energy.wasm".into())
    );
    u.run(&policy).refuses(1, "perplexity.wasm: is not trusted: it is not in");
    u.ok(&["plugin", "lock", "perplexity"]);
    // Both are in: what is missing now is the model.
    u.run(&policy).refuses(1, "no-such-model");
    assert_eq!(u.ok(&["plugin", "lock"]).out.matches("unchanged").count(), 2);

    let before = u.read("plastic.lock");
    // Another plugin of the lock in its place, then a stranger.
    for other in ["perplexity", "plateau"] {
        u.plugin(other, "plugins/energy.wasm");
        let ran = u.run(&policy);
        ran.refuses(1, "energy.wasm: is not trusted: its SHA-256 is ");
        assert!(ran.err.contains(" for energy ") && ran.err.contains("plugin lock "), "{}", ran.err);
        u.run(&["plugin", "inspect", "energy", "--locked"]).refuses(1, "is not trusted");
    }
    assert_eq!(row(&u.list(&[]), "plugins/energy.wasm")["lock"], "changed");
    let warned = u.run(&["--policy", "energy", "--base", "no-such-model"]);
    assert!(warned.err.contains("not the plugin of the lock"), "{}", warned.err);
    u.run(&["plugin", "lock"]).refuses(1, "calls itself plateau now");
    assert_eq!(u.read("plastic.lock"), before, "a refusal writes nothing");

    u.plugin("energy", "plugins/energy.wasm");
    u.run(&["plugin", "lock", "--remove", "nothing"]).refuses(1, "it holds energy, perplexity");
    u.ok(&["plugin", "lock", "--remove", "energy"]);
    u.run(&policy).refuses(1, "energy.wasm: is not trusted: it is not in");
    // A lock of another name, from another directory.
    u.ok(&["plugin", "lock", "energy", "perplexity", "--lock", "ci.lock"]);
    u.run(&["--policy", "plateau", "--lock", "ci.lock"]).refuses(1, "--lock ");
}

#[test]
fn a_tampered_plugin_is_refused_before_anything_of_it_runs() {
    let u = User::new("tampered");
    u.plugin("energy", "plugins/energy.wasm");
    u.ok(&["plugin", "lock", "energy"]);
    // Bytes in a section nobody reads: it would load.
    let mut bytes = std::fs::read(u.at("plugins/energy.wasm")).expect("a plugin");
    bytes.extend([0, 3, 1, b'x', 0]);
    u.write("plugins/energy.wasm", &bytes);
    u.ok(&["plugin", "inspect", "energy"]);
    u.run(&["plugin", "inspect", "energy", "--locked"]).refuses(1, "energy.wasm: is not trusted: its SHA-256 is ");
}

#[test]
fn a_lock_that_is_none_lets_nothing_in() {
    let u = User::new("badlock");
    u.plugin("energy", "plugins/energy.wasm");
    u.ok(&["plugin", "lock", "energy"]);
    let good = u.read("plastic.lock");
    for (text, expected) in [
        ("version = 1\n[[plugin]\n".to_owned(), "line 2"),
        (good.replace("version = 1\n", "version = 1\nallow_all = true\n"), "unknown field `allow_all`"),
        (good.replace("energy.wasm", "../../energy.wasm"), "no file name"),
        (good.replace("name = \"energy\"", "name = \"a/b\""), "no name of a plugin"),
        ("#".repeat((1 << 20) + 1), "larger than 1 MiB"),
    ] {
        u.write("plastic.lock", text.as_bytes());
        u.run(&["plugin", "inspect", "energy", "--locked"]).refuses(1, expected);
        u.run(&["plugin", "lock", "energy"]).refuses(1, expected);
        assert_eq!(u.read("plastic.lock"), text, "it is left as it was");
        let warned = u.run(&["--policy", "energy", "--base", "no-such-model"]);
        assert!(warned.err.contains("plugins are not compared with it"), "{}", warned.err);
    }
}

#[test]
fn a_signature_says_who_vouches_for_the_content() {
    let u = User::new("sign");
    u.plugin("energy", "energy.wasm");
    let key = u.ok(&["plugin", "keygen", "--no-password", "--out", "alice", "--json"]).json();
    u.ok(&["plugin", "keygen", "--no-password", "--out", "mallory"]);
    u.run(&["plugin", "keygen", "--no-password", "--out", "alice"]).refuses(1, "never overwritten");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(u.at("alice.key")).expect("a key").permissions().mode();
        assert_eq!(mode & 0o077, 0, "only its owner reads a secret key");
    }
    let verify = |key: &str| u.run(&["plugin", "verify", "energy.wasm", "--key", key]);
    verify("alice.pub").refuses(1, "unsigned; expected a signature of");
    u.ok(&["plugin", "sign", "energy.wasm", "--key", "alice.key"]);
    let good = verify("alice.pub");
    assert_eq!(good.code, Some(0), "{}", good.err);
    assert!(
        good.out.contains("(alice)") && good.out.contains("name energy") && good.out.contains("sha256 "),
        "{}",
        good.out
    );
    assert_eq!(verify(key["public_key"].as_str().expect("a key")).code, Some(0), "the key itself");
    verify("mallory.pub").refuses(1, "signed by the unknown key");
    verify("alice.key").refuses(1, "is a secret key");
    verify("energy.wasm").refuses(1, "it is no text");
    u.run(&["plugin", "verify", "energy.wasm"]).refuses(1, "there is no trusted key");
    u.run(&["plugin", "sign", "energy.wasm", "--key", "alice.pub"]).refuses(1, "no minisign secret key");

    // The user's trusted keys, and what verbs make of them.
    let inspect = |more: &[&str]| u.run(&[&["plugin", "inspect", "energy.wasm"], more].concat());
    inspect(&["--signed"]).refuses(1, "there is no trusted key");
    u.trust("alice.pub");
    assert_eq!(u.ok(&["plugin", "verify", "energy.wasm", "--json"]).json()["verified"], true);
    let shown = inspect(&["--signed"]);
    assert!(
        shown.code == Some(0) && shown.out.contains("signed by ") && shown.out.contains("(alice)"),
        "{}",
        shown.out
    );
    u.plugin("plateau", "plateau.wasm");
    for asked in [&["--signed"][..], &["--trust", "mallory.pub"]] {
        let run = [&["--policy", "plateau.wasm", "--base", "no-such-model"], asked].concat();
        u.run(&run).refuses(1, "plateau.wasm: is not trusted: it is not signed");
    }
    u.run(&["--policy", "energy.wasm", "--signed"]).refuses(1, "perplexity.wasm: is not trusted: it is not signed");

    // Attacks.
    let signature = u.read("energy.wasm.minisig");
    u.write("plateau.wasm.minisig", signature.as_bytes());
    let of_another = u.run(&["--policy", "plateau.wasm", "--signed"]);
    of_another.refuses(1, "did not sign this content");
    for (from, to) in [("name:energy", "name:trusty"), ("trusted comment: ", "trusted comment:"), ("\n", "")] {
        u.write("energy.wasm.minisig", signature.replacen(from, to, 9).as_bytes());
        inspect(&["--signed"]).refuses(1, "energy.wasm.minisig: ");
    }
    u.write("energy.wasm.minisig", &vec![b'\n'; (1 << 20) + 1]);
    inspect(&["--signed"]).refuses(1, "larger than 1 MiB");
    u.write("energy.wasm.minisig", signature.as_bytes());
    assert_eq!(inspect(&["--signed"]).code, Some(0));
    tamper(&u.at("energy.wasm"));
    verify("alice.pub").refuses(1, "BAD");
    // A trusted key that cannot be read does not vanish in silence.
    u.write("broken.pub", b"rubbish");
    u.trust("broken.pub");
    inspect(&["--signed"]).refuses(1, "broken.pub");
    let listed = u.run(&["plugin", "list", "--fast"]);
    assert!(listed.code == Some(0) && listed.err.contains("broken.pub"), "{}", listed.err);
}

#[test]
fn a_password_keeps_a_secret_key() {
    let u = User::new("password");
    u.plugin("energy", "energy.wasm");
    let with = |password: &str, args: &[&str]| ran(u.command().env("PLASTIC_KEY_PASSWORD", password).args(args));
    with("", &["plugin", "keygen", "--out", "k"]).refuses(1, "PLASTIC_KEY_PASSWORD is empty");
    assert_eq!(with("right", &["plugin", "keygen", "--out", "k"]).code, Some(0));
    let sign = ["plugin", "sign", "energy.wasm", "--key", "k.key"];
    with("wrong", &sign).refuses(1, "Wrong password");
    assert!(!u.at("energy.wasm.minisig").exists());
    assert_eq!(with("right", &sign).code, Some(0));
    u.ok(&["plugin", "verify", "energy.wasm", "--key", "k.pub"]);
}

/// The fixture was made by minisign 0.11: `minisign -S -m letter.txt`.
#[test]
fn a_signature_of_minisign_is_understood() {
    let u = User::new("minisign");
    let fixture = root().join("tests/golden/minisign");
    let (key, letter) = (fixture.join("minisign.pub"), fixture.join("letter.txt"));
    let verify =
        |file: &Path| u.run(&["plugin", "verify", &file.display().to_string(), "--key", &key.display().to_string()]);
    let good = verify(&letter);
    assert_eq!(good.code, Some(0), "{}", good.err);
    assert!(good.out.contains("4AE5756BC65A31A6") && good.out.contains("name letter version:1"), "{}", good.out);
    std::fs::copy(&letter, u.at("letter.txt")).expect("a copy");
    std::fs::copy(fixture.join("legacy.minisig"), u.at("letter.txt.minisig")).expect("a copy");
    verify(&u.at("letter.txt")).refuses(1, "old kind");
    std::fs::copy(fixture.join("letter.txt.minisig"), u.at("letter.txt.minisig")).expect("a copy");
    assert_eq!(verify(&u.at("letter.txt")).code, Some(0));
    tamper(&u.at("letter.txt"));
    verify(&u.at("letter.txt")).refuses(1, "BAD");
}
