//! Damaged, hostile and random files end in an error that names what is wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use std::io::Cursor;

/// A file being written by hand.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn head(tensors: u64, keys: u64) -> Bytes {
        Bytes(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }
    fn u32(mut self, x: u32) -> Bytes {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn u64(mut self, x: u64) -> Bytes {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn text(mut self, s: &str) -> Bytes {
        self = self.u64(s.len() as u64);
        self.0.extend(s.as_bytes());
        self
    }
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Bytes {
        self = self.text(name).u32(dims.len() as u32);
        for d in dims {
            self = self.u64(*d);
        }
        self.u32(kind).u64(offset)
    }
    /// Pads to the data section and adds so many bytes of it.
    fn data(mut self, n: usize) -> Bytes {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
    fn read(&self) -> Result<Header, String> {
        Header::read(Cursor::new(&self.0))
    }
}

#[test]
fn a_sound_file_is_read() {
    let h = Bytes::head(2, 3)
        .text("a")
        .u32(STRING)
        .text("é")
        .text("b")
        .u32(ARRAY)
        .u32(INT32)
        .u64(2)
        .u32(7)
        .u32(u32::MAX)
        .text("c")
        .u32(FLOAT32)
        .u32(1e-5f32.to_bits())
        .tensor("w", &[32, 3], 2, 0)
        .tensor("n", &[4], 0, 64)
        .data(80)
        .read()
        .unwrap();
    assert_eq!(h.string("a").unwrap(), Some("é"));
    assert_eq!(h.ints("b").unwrap(), Some(&[7, -1][..]));
    assert_eq!(h.float("c").unwrap(), Some(1e-5));
    assert_eq!(h.uint("none").unwrap(), None);
    assert!(h.uint("a").unwrap_err().contains("holds text"));
    let w = &h.tensors[0];
    assert_eq!((w.shape.as_slice(), w.bytes, w.rows(), w.cols()), (&[3, 32][..], 54, 3, 32));
    assert_eq!(h.tensors[1].offset, w.offset + 64);
}

#[test]
fn every_kind_of_damage_is_named() {
    let one = |t: Bytes| t.data(1000);
    let cases: Vec<(Bytes, &str)> = vec![
        (Bytes(b"GG".to_vec()), "truncated"),
        (Bytes(b"PK\x03\x04aaaa".to_vec()), "not a GGUF file: it begins with PK"),
        (Bytes(b"GGUF".to_vec()).u32(1).u64(0).u64(0), "version 1"),
        (Bytes(b"GGUF".to_vec()).u32(3 << 24).u64(0).u64(0), "big-endian"),
        (Bytes::head(u64::MAX, 0), "at most"),
        (Bytes::head(1000, 0), "claims 1000 tensors"),
        (Bytes::head(0, 5), "claims 5 metadata keys"),
        (Bytes::head(0, 1).u64(1 << 60).data(99), "claims a text of"),
        (Bytes::head(0, 1).u64(500).data(99), "claims 500 bytes of text for a metadata key"),
        (Bytes::head(0, 1).text("k").u32(STRING).u64(1 << 40).data(9), "for k"),
        (Bytes::head(0, 1).text("k").u32(ARRAY).u32(UINT64).u64(1 << 20).data(9), "claims 1048576 elements in k"),
        (Bytes::head(0, 1).text("k").u32(ARRAY).u32(UINT8).u64(1 << 62).data(9), "at most"),
        (Bytes::head(0, 1).text("k").u32(ARRAY).u32(ARRAY).u64(1).data(99), "array of arrays"),
        (Bytes::head(0, 1).text("k").u32(77).data(99), "type number 77"),
        (Bytes::head(0, 1).text("k").u32(BOOL).u32(7), "truth value 7"),
        (Bytes::head(0, 2).text("k").u32(UINT32).u32(1).text("k").u32(UINT32).u32(1), "twice"),
        (Bytes::head(0, 1).text("general.alignment").u32(UINT32).u32(24), "power of two"),
        (one(Bytes::head(1, 0).tensor("w", &[1 << 40, 1 << 40], 0, 0)), "impossible shape"),
        (one(Bytes::head(1, 0).tensor("w", &[0], 0, 0)), "impossible shape"),
        (one(Bytes::head(1, 0).tensor("w", &[33], 2, 0)), "do not fill rows"),
        (one(Bytes::head(1, 0).tensor("w", &[1, 1, 1, 1, 1], 0, 0)), "5 dimensions"),
        (one(Bytes::head(1, 0).tensor("w", &[32], 5, 0)), "type number 5"),
        (one(Bytes::head(1, 0).tensor("w", &[32], 0, 5)), "not aligned"),
        (one(Bytes::head(1, 0).tensor("w", &[32], 0, 1 << 30)), "truncated: tensor w"),
        (one(Bytes::head(1, 0).tensor("w", &[32], 0, u64::MAX - 31)), "truncated: tensor w"),
        (one(Bytes::head(2, 0).tensor("w", &[32], 0, 0).tensor("w", &[32], 0, 128)), "tensor w appears twice"),
        (one(Bytes::head(2, 0).tensor("v", &[32], 0, 0).tensor("w", &[32], 0, 64)), "overlap"),
    ];
    for (bytes, message) in cases {
        match bytes.read() {
            Ok(_) => panic!("read, though it should say {message:?}"),
            Err(e) => assert!(e.contains(message), "{e:?} does not say {message:?}"),
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::read(Cursor::new(&bytes));
        let mut with_head = Bytes::head(u64::from(bytes.first().copied().unwrap_or(0)) % 3, 2).0;
        with_head.extend(&bytes);
        let _ = Header::read(Cursor::new(&with_head));
    }

    /// A sound file with a few bytes changed or cut off.
    #[test]
    fn damage_never_panics(
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..4), length in 0usize..400
    ) {
        let mut file = Bytes::head(2, 2).text("a").u32(STRING).text("abc").text("b").u32(ARRAY).u32(STRING).u64(2)
            .text("x").text("y").tensor("w", &[32, 3], 2, 0).tensor("n", &[4], 0, 64).data(80).0;
        for (at, byte) in changes {
            if let Some(b) = file.get_mut(at) {
                *b = byte;
            }
        }
        file.truncate(length);
        let _ = Header::read(Cursor::new(&file));
    }
}
