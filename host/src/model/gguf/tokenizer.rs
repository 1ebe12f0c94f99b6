//! Rebuilds `tokenizer.json` and its companions from GGUF metadata.
//!
//! A GGUF file holds vocabulary, merges and token types, and *names* the pre-tokenizer. Only names whose
//! exact rules are known here are rebuilt; another one is refused rather than guessed, since a wrong
//! rule splits text slightly differently and nothing else would show it. The result is loaded once
//! before it is written.

use super::{Header, Reason};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::str::FromStr;

/// Token types of GGUF that become added tokens.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Ids of the tokens with a role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// First token of a text.
    pub bos: Option<u64>,
    /// Last token of a text.
    pub eos: Option<u64>,
    /// End of a turn, where that is another token than `eos`.
    pub eot: Option<u64>,
    /// Fills up batches.
    pub pad: Option<u64>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u64>,
}

/// A rebuilt tokenizer.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// File names and contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// Ids of the tokens with a role.
    pub special: Special,
    /// Number of tokens.
    pub tokens: u64,
}

/// Rules that a pre-tokenizer's name stands for.
struct Rules {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    /// A word that is a token as a whole is not merged from pieces.
    ignore_merges: bool,
    /// Texts begin with the first token unless the file says otherwise.
    add_bos: bool,
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex })
}

/// Splits by a regular expression, then maps bytes to characters.
fn split(regex: &str, trim_offsets: bool) -> Value {
    json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
        byte_level(false, trim_offsets, false),
    ] })
}

/// The rules behind the value of `tokenizer.ggml.pre`, as the models' own tokenizer.json have them.
fn rules(pre: &str) -> Option<Rules> {
    let gpt2 = Rules {
        normalizer: Value::Null,
        pre_tokenizer: byte_level(false, true, true),
        post_processor: byte_level(true, false, true),
        decoder: byte_level(true, true, true),
        ignore_merges: false,
        add_bos: false,
    };
    Some(match pre {
        "gpt-2" => gpt2,
        "smollm" | "starcoder" | "refact" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            let both = json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(false, true, true)] });
            Rules { pre_tokenizer: both, ..gpt2 }
        }
        "llama-bpe" | "llama3" | "llama-v3" => Rules {
            pre_tokenizer: split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                true,
            ),
            ignore_merges: true,
            add_bos: true,
            ..gpt2
        },
        "qwen2" => Rules {
            normalizer: json!({ "type": "NFC" }),
            pre_tokenizer: split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                false,
            ),
            post_processor: byte_level(false, false, false),
            decoder: byte_level(false, false, false),
            ..gpt2
        },
        _ => return None,
    })
}

/// Builds the tokenizer's files. `context` is the longest text of the model in tokens.
pub fn rebuild(h: &Header, context: u64) -> Reason<Rebuilt> {
    let original = "; use the model's original safetensors files, which have their own tokenizer.json";
    match h.string("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => {
            return Err(format!("has a \"{other}\" tokenizer; byte-level BPE (\"gpt2\") can be rebuilt{original}"));
        }
        None => return Err(format!("has no tokenizer (tokenizer.ggml.model){original}")),
    }
    let pre = h.string("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
    let rules = rules(pre).ok_or_else(|| {
        format!("splits words as \"{pre}\"; smollm, gpt-2, llama-bpe, qwen2, starcoder and refact are known{original}")
    })?;
    let need = |key: &str| format!("has no metadata key {key}");
    let tokens = h.strings("tokenizer.ggml.tokens")?.ok_or_else(|| need("tokenizer.ggml.tokens"))?;
    let merges = h.strings("tokenizer.ggml.merges")?.ok_or_else(|| need("tokenizer.ggml.merges"))?;
    let types = h.ints("tokenizer.ggml.token_type")?.unwrap_or(&[]);
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(format!("has {} tokens and {} token types", tokens.len(), types.len()));
    }
    let vocab = vocabulary(tokens)?;
    let merges = check_merges(merges, &vocab)?;
    let special = special(h, tokens)?;
    let text = |id: Option<u64>| id.and_then(|i| tokens.get(i as usize)).map(String::as_str);

    let added: Vec<Value> = types
        .iter()
        .zip(tokens)
        .enumerate()
        .filter(|(_, (kind, _))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (kind, token))| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL })
        })
        .collect();
    let add_bos = h.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(rules.add_bos);
    let add_eos = h.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let first = special.bos.filter(|_| add_bos);
    let last = special.eos.filter(|_| add_eos);
    let post_processor = match template(first, last, tokens) {
        Some(t) => json!({ "type": "Sequence", "processors": [rules.post_processor, t] }),
        None => rules.post_processor,
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": rules.normalizer, "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": post_processor, "decoder": rules.decoder,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "ignore_merges": rules.ignore_merges,
                   "vocab": tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect::<Map<_, _>>(),
                   "merges": merges },
    });

    let roles = json!({
        "bos_token": text(special.bos), "eos_token": text(special.eos),
        "pad_token": text(special.pad), "unk_token": text(special.unk),
        "additional_special_tokens": additional(text(special.bos), text(special.eos)),
    });
    let decoder: Map<String, Value> = added
        .iter()
        .filter_map(|t| {
            let mut t = t.as_object()?.clone();
            Some((t.remove("id")?.to_string(), Value::Object(t)))
        })
        .collect();
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": false, "add_bos_token": add_bos,
        "add_eos_token": add_eos, "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": false, "model_max_length": context,
    });
    if let (Some(config), Some(roles)) = (config.as_object_mut(), roles.as_object()) {
        config.extend(roles.clone());
    }

    let mut files = Vec::new();
    if let Some(chat) = h.string("tokenizer.chat_template")? {
        if let Some(config) = config.as_object_mut() {
            config.insert("chat_template".into(), json!(chat));
        }
        files.push(("chat_template.jinja", chat.as_bytes().to_vec()));
    }
    let ends: Vec<u64> = special.eos.into_iter().chain(special.eot).collect();
    let generation = json!({
        "bos_token_id": special.bos,
        "eos_token_id": if ends.len() == 1 { json!(ends.first()) } else { json!(ends) },
        "pad_token_id": special.pad,
    });
    let tokenizer = pretty(&tokenizer)?;
    let text = std::str::from_utf8(&tokenizer).map_err(|e| e.to_string())?;
    tokenizers::Tokenizer::from_str(text).map_err(|e| format!("has a tokenizer that cannot be rebuilt ({e})"))?;
    files.push(("tokenizer.json", tokenizer));
    files.push(("tokenizer_config.json", pretty(&config)?));
    files.push(("special_tokens_map.json", pretty(&roles)?));
    files.push(("generation_config.json", pretty(&generation)?));
    Ok(Rebuilt { files, special, tokens: tokens.len() as u64 })
}

/// JSON as people read it, with a final newline.
pub fn pretty(value: &Value) -> Reason<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| e.to_string())?;
    text.push(b'\n');
    Ok(text)
}

fn vocabulary(tokens: &[String]) -> Reason<HashMap<&str, usize>> {
    let mut vocab = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = vocab.insert(token.as_str(), id) {
            return Err(format!("has the token {token:?} twice, with ids {other} and {id}"));
        }
    }
    Ok(vocab)
}

/// Splits merges into pairs and checks that pairs and results are tokens.
fn check_merges<'a>(merges: &'a [String], vocab: &HashMap<&str, usize>) -> Reason<Vec<[&'a str; 2]>> {
    let known = |a: &str, b: &str| {
        vocab.contains_key(a) && vocab.contains_key(b) && vocab.contains_key(format!("{a}{b}").as_str())
    };
    merges
        .iter()
        .map(|m| match m.split_once(' ') {
            Some((a, b)) if known(a, b) => Ok([a, b]),
            _ => Err(format!("has the merge {m:?}, which is not two tokens that make a third")),
        })
        .collect()
}

fn special(h: &Header, tokens: &[String]) -> Reason<Special> {
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match h.uint(&key)? {
            Some(id) if id >= tokens.len() as u64 => {
                Err(format!("metadata key {key} is {id}, and there are {} tokens", tokens.len()))
            }
            other => Ok(other),
        }
    };
    let (bos, eos) = (id("bos")?, id("eos")?);
    let eot = id("eot")?.filter(|t| Some(*t) != eos);
    Ok(Special { bos, eos, eot, pad: id("padding")?, unk: id("unknown")? })
}

/// A post-processor that puts `first` before and `last` after every text; `None` where there is neither.
fn template(first: Option<u64>, last: Option<u64>, tokens: &[String]) -> Option<Value> {
    if first.is_none() && last.is_none() {
        return None;
    }
    let text = |id: u64| tokens.get(id as usize).cloned().unwrap_or_default();
    let token = |id: u64, sequence: u32| json!({ "SpecialToken": { "id": text(id), "type_id": sequence } });
    let one = |name: &str, sequence: u32| {
        let body = json!({ "Sequence": { "id": name, "type_id": sequence } });
        let before = first.map(|id| token(id, sequence));
        let after = last.map(|id| token(id, sequence));
        before.into_iter().chain([body]).chain(after).collect::<Vec<_>>()
    };
    let used: Map<String, Value> = first
        .into_iter()
        .chain(last)
        .map(|id| (text(id), json!({ "id": text(id), "ids": [id], "tokens": [text(id)] })))
        .collect();
    let pair: Vec<Value> = one("A", 0).into_iter().chain(one("B", 1)).collect();
    Some(json!({ "type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": used }))
}

/// Both tokens once, in order.
fn additional<'a>(bos: Option<&'a str>, eos: Option<&'a str>) -> Vec<&'a str> {
    bos.into_iter().chain(eos.filter(|e| Some(*e) != bos)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::Value as G;
    use super::*;

    /// A vocabulary of all byte characters, a few merges and two control tokens.
    fn header(pre: &str) -> Header {
        let mut tokens: Vec<String> = ["<s>", "</s>"].map(String::from).to_vec();
        tokens.extend(tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().iter().map(char::to_string));
        tokens[2..].sort();
        tokens.extend(["he", "ll", "hell", "hello", "12", "Ġ1"].map(String::from));
        let types = (0..tokens.len()).map(|i| if i < 2 { CONTROL } else { 1 }).collect();
        let merges = ["h e", "l l", "he ll", "hell o", "1 2", "Ġ 1"].map(String::from).to_vec();
        let mut h = Header::default();
        for (k, v) in [
            ("model", G::String("gpt2".into())),
            ("pre", G::String(pre.into())),
            ("tokens", G::Strings(tokens)),
            ("token_type", G::Ints(types)),
            ("merges", G::Strings(merges)),
            ("bos_token_id", G::Uint(0)),
            ("eos_token_id", G::Uint(1)),
        ] {
            h.metadata.insert(format!("tokenizer.ggml.{k}"), v);
        }
        h
    }

    fn encode(h: &Header, text: &str) -> Vec<String> {
        let files = rebuild(h, 100).unwrap().files;
        let json = &files.iter().find(|f| f.0 == "tokenizer.json").unwrap().1;
        let t = tokenizers::Tokenizer::from_bytes(json).unwrap();
        t.encode(text, true).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn each_rule_splits_its_own_way() {
        assert_eq!(encode(&header("gpt-2"), "hello 12"), ["hello", "Ġ", "12"]);
        assert_eq!(encode(&header("smollm"), "hello 12"), ["hello", "Ġ", "1", "2"]);
        assert_eq!(encode(&header("qwen2"), "hello12"), ["hello", "1", "2"]);
        assert_eq!(encode(&header("llama-bpe"), "hello12"), ["<s>", "hello", "12"], "llama 3 begins with bos");
        assert_eq!(encode(&header("smollm"), "<s>hello</s>"), ["<s>", "hello", "</s>"]);
    }

    #[test]
    fn the_file_decides_about_first_and_last_token() {
        let mut h = header("smollm");
        h.metadata.insert("tokenizer.ggml.add_bos_token".into(), G::Bool(true));
        h.metadata.insert("tokenizer.ggml.add_eos_token".into(), G::Bool(true));
        assert_eq!(encode(&h, "hello"), ["<s>", "hello", "</s>"]);
    }

    #[test]
    fn an_end_of_turn_also_ends_generation() {
        let mut h = header("smollm");
        h.metadata.insert("tokenizer.ggml.eot_token_id".into(), G::Uint(5));
        h.metadata.insert("tokenizer.chat_template".into(), G::String("{{ x }}".into()));
        let files = rebuild(&h, 100).unwrap().files;
        let file = |n: &str| String::from_utf8(files.iter().find(|f| f.0 == n).unwrap().1.clone()).unwrap();
        let generation: Value = serde_json::from_str(&file("generation_config.json")).unwrap();
        assert_eq!(generation["eos_token_id"], json!([1, 5]));
        assert_eq!(file("chat_template.jinja"), "{{ x }}");
    }

    #[test]
    fn what_cannot_be_rebuilt_is_refused() {
        let cases: [(&str, G, &str); 7] = [
            ("model", G::String("llama".into()), "\"llama\" tokenizer"),
            ("pre", G::String("viking".into()), "viking"),
            ("merges", G::Strings(vec!["h x".into()]), "h x"),
            ("merges", G::Strings(vec!["hello".into()]), "hello"),
            ("token_type", G::Ints(vec![1]), "token types"),
            ("eos_token_id", G::Uint(1 << 40), "eos_token_id"),
            ("tokens", G::Strings(vec!["a".into(), "a".into()]), "twice"),
        ];
        for (key, value, message) in cases {
            let mut h = header("smollm");
            h.metadata.insert(format!("tokenizer.ggml.{key}"), value);
            if key == "tokens" {
                h.metadata.remove("tokenizer.ggml.token_type");
            }
            let e = rebuild(&h, 100).unwrap_err();
            assert!(e.contains(message), "{key}: {e}");
        }
    }
}
