//! A model as one file: an uncompressed tar of members in a fixed order, so that any system can unpack
//! it, and with one form only, so that nothing can hide between them.

use rondo::ids::SiteId;
use rondo::papers::{
    PASSPORT_NAME, Papers, RECEIPTS_MAX_BYTES, RECEIPTS_NAME, SIGNATURE_MAX_BYTES, SIGNATURE_NAME,
    WEIGHTS_NAME, card_name,
};
use rondo::passport::PASSPORT_MAX_BYTES;
use rondo::trust::PEERS_MAX;
use std::io::{self, Read, Write};

/// What the name of such a file ends with.
pub(crate) const EXTENSION: &str = "rondo";
/// Tar works in blocks; the end is two empty ones.
const BLOCK: usize = 512;
/// Largest member that eleven octal digits can tell.
const MEMBER_MAX_BYTES: u64 = 0o77_777_777_777;
/// Largest card.
const CARD_MAX_BYTES: usize = 64 * 1024;

/// Why bytes are not a model's file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file itself.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another form.
    #[error("{0}; it was changed, or is no file of `rondo model export`")]
    Form(String),
    /// A card among the papers.
    #[error(transparent)]
    Papers(#[from] rondo::papers::Error),
}

impl Error {
    /// Reason code.
    pub(crate) const CODE: &'static str = "file-malformed";
}

/// The header of a regular file: the same bytes for the same name and size, whoever writes it.
fn header(name: &str, bytes: u64) -> Result<[u8; BLOCK], Error> {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        if let Some(place) = block.get_mut(at..at + text.len()) {
            place.copy_from_slice(text);
        }
    };
    if name.len() > 99 || bytes > MEMBER_MAX_BYTES {
        return Err(Error::Form(format!("`{name}` of {bytes} bytes does not fit a tar file")));
    }
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    if let Some(place) = block.get_mut(148..156) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(block)
}

/// Empty bytes after a member of `bytes`.
fn padding(bytes: u64) -> usize {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or_default();
    (BLOCK - over) % BLOCK
}

/// Writes a model's file.
pub(crate) fn write(out: &mut impl Write, papers: &Papers, weights: &[u8]) -> Result<(), Error> {
    let sites = papers.sites()?;
    let mut member = |name: &str, bytes: &[u8]| -> Result<(), Error> {
        let size = bytes.len() as u64;
        out.write_all(&header(name, size)?)?;
        out.write_all(bytes)?;
        Ok(out.write_all(&[0; BLOCK][..padding(size)])?)
    };
    member(PASSPORT_NAME, &papers.passport)?;
    member(RECEIPTS_NAME, &papers.receipts)?;
    for (site, card) in sites.iter().zip(&papers.cards) {
        member(&card_name(site), card)?;
    }
    member(SIGNATURE_NAME, &papers.signature)?;
    member(WEIGHTS_NAME, weights)?;
    Ok(out.write_all(&[0; 2 * BLOCK])?)
}

/// A model's file whose papers were read, and whose weights come next.
pub(crate) struct Opened<R> {
    /// The papers; not believed yet.
    pub(crate) papers: Papers,
    /// Length of the weights as the file says.
    pub(crate) weights: u64,
    left: u64,
    rest: R,
}

impl<R: Read> Opened<R> {
    /// Reads the papers.
    pub(crate) fn read(mut rest: R) -> Result<Self, Error> {
        let passport = member(&mut rest, PASSPORT_NAME, PASSPORT_MAX_BYTES)?;
        let receipts = member(&mut rest, RECEIPTS_NAME, RECEIPTS_MAX_BYTES)?;
        let mut cards = Vec::new();
        let signature = loop {
            let (name, bytes) = next(&mut rest)?;
            if name == SIGNATURE_NAME {
                break content(&mut rest, &name, bytes, SIGNATURE_MAX_BYTES)?;
            }
            let site = name.strip_prefix("cards/").and_then(|n| n.strip_suffix(".json"));
            if site.is_none_or(|s| s.parse::<SiteId>().is_err()) || cards.len() == PEERS_MAX {
                return Err(Error::Form(format!("`{name}` has no place in it")));
            }
            cards.push((name.clone(), content(&mut rest, &name, bytes, CARD_MAX_BYTES)?));
        };
        let (name, weights) = next(&mut rest)?;
        if name != WEIGHTS_NAME {
            return Err(Error::Form(format!("`{name}` stands where `{WEIGHTS_NAME}` belongs")));
        }
        let (names, cards): (Vec<_>, Vec<_>) = cards.into_iter().unzip();
        let papers = Papers { passport, receipts, cards, signature };
        if !papers.sites()?.iter().map(card_name).eq(names) {
            return Err(Error::Form("a card lies under another site's name".to_owned()));
        }
        Ok(Self { papers, weights, left: weights, rest })
    }

    /// The next `most` bytes of the weights, fewer at the end; none after it, where the end of the file
    /// was found as it must be.
    pub(crate) fn weights(&mut self, most: usize) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(most);
        if size == 0 {
            let mut end = Vec::new();
            let length = padding(self.weights) + 2 * BLOCK;
            (&mut self.rest).take(length as u64 + 1).read_to_end(&mut end)?;
            if end.len() != length || end.iter().any(|b| *b != 0) {
                return Err(Error::Form("it does not end after the weights".to_owned()));
            }
            return Ok(Vec::new());
        }
        let mut data = vec![0; size];
        self.rest.read_exact(&mut data)?;
        self.left -= size as u64;
        Ok(data)
    }

    /// All of the weights, which must have `expected` bytes.
    pub(crate) fn all_weights(mut self, expected: u64) -> Result<(Papers, Vec<u8>), Error> {
        if self.weights != expected {
            let found = self.weights;
            let text = format!("its weights have {found} bytes, but its plan needs {expected}");
            return Err(Error::Form(text));
        }
        let weights = self.weights(usize::MAX)?;
        self.weights(1)?;
        Ok((self.papers, weights))
    }
}

/// Name and size of the next member. Any header but the one that `header` writes is refused.
fn next(from: &mut impl Read) -> Result<(String, u64), Error> {
    let strange = || Error::Form("a header in it is not as it should be".to_owned());
    let mut block = [0; BLOCK];
    from.read_exact(&mut block)?;
    let name = block.iter().take(100).take_while(|b| **b != 0).copied().collect();
    let name = String::from_utf8(name).map_err(|_| strange())?;
    let size = block.get(124..135).and_then(|digits| std::str::from_utf8(digits).ok());
    let size = size.and_then(|digits| u64::from_str_radix(digits, 8).ok()).ok_or_else(strange)?;
    if header(&name, size)? == block { Ok((name, size)) } else { Err(strange()) }
}

fn member(from: &mut impl Read, name: &str, max: usize) -> Result<Vec<u8>, Error> {
    let (found, bytes) = next(from)?;
    if found != name {
        return Err(Error::Form(format!("`{found}` stands where `{name}` belongs")));
    }
    content(from, name, bytes, max)
}

fn content(from: &mut impl Read, name: &str, bytes: u64, max: usize) -> Result<Vec<u8>, Error> {
    let size = usize::try_from(bytes).ok().filter(|size| *size <= max);
    let size = size.ok_or_else(|| Error::Form(format!("`{name}` is larger than {max} bytes")))?;
    let mut data = vec![0; size + padding(bytes)];
    from.read_exact(&mut data)?;
    if data.split_off(size).iter().any(|b| *b != 0) {
        return Err(Error::Form(format!("the bytes after `{name}` are not empty")));
    }
    Ok(data)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::tests::parcel;

    fn read(bytes: &[u8]) -> Result<(Papers, Vec<u8>), Error> {
        let opened = Opened::read(bytes)?;
        let weights = opened.weights;
        opened.all_weights(weights)
    }

    #[test]
    fn one_form_only_is_read_and_every_bit_counts() {
        let (parcel, roster, ..) = parcel();
        let mut file = Vec::new();
        write(&mut file, &parcel.papers, &parcel.weights).unwrap();
        for cut in [0, 1, 511, 512, file.len() / 2, file.len() - 1] {
            assert!(read(&file[..cut]).is_err(), "cut at {cut}");
        }
        file.push(0);
        assert!(read(&file).is_err(), "a byte after the end");
        file.pop();
        let genuine = |bytes: &[u8]| {
            let (papers, weights) = read(bytes).ok()?;
            papers.verify(&roster).ok()?.verify_weights(&weights).ok()
        };
        for i in (0..file.len()).step_by(13) {
            file[i] ^= 4;
            assert!(genuine(&file).is_none(), "byte {i} may change unnoticed");
            file[i] ^= 4;
        }
        assert!(genuine(&file).is_some());
        let (papers, weights) = read(&file).unwrap();
        assert_eq!((papers, weights), (parcel.papers, parcel.weights));
    }

    #[test]
    fn other_members_and_sizes_are_refused() {
        let (parcel, ..) = parcel();
        let refused = |papers: &Papers, weights: &[u8]| {
            let mut file = Vec::new();
            write(&mut file, papers, weights).unwrap();
            read(&file).unwrap_err().to_string()
        };
        let long =
            Papers { signature: vec![b' '; SIGNATURE_MAX_BYTES + 1], ..parcel.papers.clone() };
        assert!(refused(&long, b"w").contains("`model.sig` is larger than"));
        let mut link = header(PASSPORT_NAME, 0).unwrap();
        link[156] = b'2';
        assert!(read(&link).unwrap_err().to_string().contains("not as it should be"));
        let first = header("../passport.json", 0).unwrap();
        assert!(read(&first).unwrap_err().to_string().contains("stands where `passport.json`"));
        let mut file = Vec::new();
        write(&mut file, &parcel.papers, &parcel.weights).unwrap();
        let opened = Opened::read(file.as_slice()).unwrap();
        assert!(opened.all_weights(7).unwrap_err().to_string().contains("its plan needs 7"));
    }
}
