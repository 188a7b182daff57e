//! What ranks must agree on before anything is computed.

use moec_ir::Placement;
use moec_ir::diag::Diagnostic;

/// What a rank says of itself in front of everything that it dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// What decides the bits of the programs.
    pub fingerprint: u64,
    /// Most tokens of a rank in one step.
    pub max_tokens: u64,
    /// Number of the step, from 0.
    pub step: u64,
    /// Version of the placement map that rows are sent by, and what tells maps of one version apart.
    pub map: (u64, u64),
    /// The newest map that this rank has weights for; all ranks go over to the oldest of these.
    pub ready: (u64, u64),
}

/// `moecEP` and the version of the message format.
const MAGIC: u64 = 0x6d6f_6563_4550_0001;

const WORDS: usize = 8;

impl Terms {
    /// Bytes in front of a message.
    pub const BYTES: usize = WORDS * 8;

    pub fn to_bytes(&self) -> Vec<u8> {
        let Terms { fingerprint, max_tokens, step, map, ready } = self;
        let words: [u64; WORDS] = [MAGIC, *fingerprint, *max_tokens, *step, map.0, map.1, ready.0, ready.1];
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// `None` when the message is of another program or format.
    pub fn from_bytes(bytes: &[u8]) -> Option<Terms> {
        let mut words =
            bytes.get(..Terms::BYTES)?.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()));
        let mut next = || words.next();
        if next()? != MAGIC {
            return None;
        }
        let (fingerprint, max_tokens, step) = (next()?, next()?, next()?);
        let map = (next()?, next()?);
        Some(Terms { fingerprint, max_tokens, step, map, ready: (next()?, next()?) })
    }

    /// That rank `rank`, which sent `theirs`, means the same as rank `own`.
    ///
    /// # Errors
    /// `ranks-disagree`.
    pub fn check(&self, own: u32, rank: u32, theirs: Option<&Terms>) -> Result<(), Diagnostic> {
        let differ = |what: String, help: &str| {
            Err(Diagnostic::input("ranks-disagree", what).note("nothing has been computed in this step").help(help))
        };
        let Some(theirs) = theirs else {
            let what = format!("rank {rank} sent something that is no message of a rank of this moec");
            return differ(what, "run the same moec on all ranks");
        };
        if theirs.fingerprint != self.fingerprint {
            let (a, b) = (self.fingerprint, theirs.fingerprint);
            let what =
                format!("rank {rank} has another layer than rank {own}: its fingerprint is {b:016x}, not {a:016x}");
            return differ(what, "give all ranks the same bundle, model and options");
        }
        if theirs.max_tokens != self.max_tokens {
            let (a, b) = (self.max_tokens, theirs.max_tokens);
            let what = format!("rank {rank} is made for up to {b} tokens, rank {own} for up to {a}");
            return differ(what, "give all ranks the same largest number of tokens");
        }
        if theirs.step != self.step {
            let what = format!("rank {rank} is in step {}, rank {own} in step {}", theirs.step, self.step);
            return differ(what, "let all ranks take part in every step, with no tokens where they have none");
        }
        if theirs.map != self.map {
            let (a, b) = (self.map.0, theirs.map.0);
            let what = match a.cmp(&b) {
                std::cmp::Ordering::Greater => {
                    format!("rank {rank} has an older placement map, version {b}; rank {own} has version {a}")
                }
                std::cmp::Ordering::Less => {
                    format!("rank {rank} has a newer placement map, version {b}; rank {own} has version {a}")
                }
                std::cmp::Ordering::Equal => {
                    format!("rank {rank} has another placement map than rank {own}, and both are version {a}")
                }
            };
            return differ(what, "hand the newest map to all ranks, under a version of its own");
        }
        Ok(())
    }
}

/// The version of a map, and a number that tells it from others of the same version.
pub(crate) fn map_terms(map: &Placement) -> (u64, u64) {
    (map.version(), fnv(&map.to_json()))
}

/// FNV-1a.
pub(crate) fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms { fingerprint: 1, max_tokens: 8, step: 3, map: (2, 9), ready: (2, 9) }
    }

    #[test]
    fn terms_are_read_back() {
        let bytes = terms().to_bytes();
        assert_eq!((bytes.len(), Terms::from_bytes(&bytes)), (Terms::BYTES, Some(terms())));
        assert_eq!(Terms::from_bytes(&bytes[1..]), None);
        assert_eq!(Terms::from_bytes(&[0; 64]), None);
    }

    #[test]
    fn every_difference_is_named() {
        let of = |t: Option<Terms>| terms().check(0, 2, t.as_ref());
        assert!(of(Some(Terms { ready: (4, 1), ..terms() })).is_ok());
        for (theirs, word) in [
            (None, "no message"),
            (Some(Terms { fingerprint: 2, ..terms() }), "fingerprint"),
            (Some(Terms { max_tokens: 9, ..terms() }), "up to 9 tokens"),
            (Some(Terms { step: 4, ..terms() }), "step 4"),
            (Some(Terms { map: (1, 9), ..terms() }), "older placement map, version 1"),
            (Some(Terms { map: (5, 9), ..terms() }), "newer placement map, version 5"),
            (Some(Terms { map: (2, 8), ..terms() }), "both are version 2"),
        ] {
            let d = of(theirs).unwrap_err();
            assert!(d.code == "ranks-disagree" && d.message.contains("rank 2") && d.message.contains(word), "{d}");
            assert!(d.help.is_some());
        }
    }
}
