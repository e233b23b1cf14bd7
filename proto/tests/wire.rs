//! Golden bytes of every message between two sites: what is on the wire stays what it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use prost::Message;
use rondo_proto::peer::offer_answer::Answer;
use rondo_proto::peer::{
    Chunk, CollectRequest, Collected, FetchChunksRequest, GreetRequest, Greeting, Having, Held,
    Offer, OfferAnswer, ReceiptAcknowledgement, ReceiptBatch, Wanted,
};
use std::fmt::Debug;

/// The bytes of a listing: what follows `#` in a line says what they are.
fn golden(listing: &str) -> Vec<u8> {
    let digits = listing.lines().flat_map(|line| line.split('#').next().unwrap().chars());
    let digits: Vec<u8> =
        digits.filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn holds<M: Message + Default + PartialEq + Debug>(message: &M, listing: &str) {
    let bytes = golden(listing);
    // Bytes first that are cut: none of them is read as the message.
    for cut in 1..bytes.len() {
        assert_ne!(M::decode(&bytes[..cut]).ok().as_ref(), Some(message), "cut at {cut}");
    }
    assert_eq!(M::decode(bytes.as_slice()).as_ref(), Ok(message));
    assert_eq!(message.encode_to_vec(), bytes);
}

#[test]
fn every_message_keeps_its_bytes() {
    holds(&GreetRequest::default(), "");
    holds(
        &GreetRequest { card: b"{}".to_vec(), holds: vec![0x22; 2] },
        "0a 02 7b 7d            # 1, bytes: card
         12 02 22 22            # 2, bytes: holds",
    );
    holds(
        &Greeting {
            site: "uker".to_owned(),
            version_major: 1,
            version_minor: 2,
            version_patch: 3,
            now: 1_800_000_000,
            ..Greeting::default()
        },
        "0a 04 75 6b 65 72      # 1, text: uker
         10 01                  # 2, number: major
         18 02                  # 3, number: minor
         20 03                  # 4, number: patch
         28 80 a4 a7 da 06      # 5, number: now",
    );
    holds(
        &Greeting {
            card: b"{}".to_vec(),
            reaches_you: true,
            holds: vec![0x22; 2],
            ..Greeting::default()
        },
        "32 02 7b 7d            # 6, bytes: card
         38 01                  # 7, truth: reaches you
         42 02 22 22            # 8, bytes: holds",
    );
    holds(
        &ReceiptBatch { round: vec![0x11; 4], receipts: vec![b"{}".to_vec(), b"[]".to_vec()] },
        "0a 04 11 11 11 11      # 1, bytes: round
         12 02 7b 7d            # 2, bytes: a receipt
         12 02 5b 5d            # 2, bytes: the next one",
    );
    holds(&ReceiptAcknowledgement { number: 300 }, "08 ac 02   # 1, number: 300");
    holds(
        &Offer { round: vec![0x11; 4], visit: 2, passport: b"{}".to_vec() },
        "0a 04 11 11 11 11      # 1, bytes: round
         10 02                  # 2, number: visit
         1a 02 7b 7d            # 3, bytes: passport",
    );
    holds(
        &OfferAnswer {
            answer: Some(Answer::Wanted(Wanted { chunks: vec![0, 1, 300], offset: 0 })),
        },
        "0a 06                  # 1, message: wanted
         0a 04 00 01 ac 02      # 1, packed numbers: chunks",
    );
    holds(
        &Wanted { chunks: vec![7], offset: 300 },
        "0a 01 07               # 1, packed numbers: chunks
         10 ac 02               # 2, number: offset",
    );
    holds(&Chunk { offset: 65_536, ..Chunk::default() }, "28 80 80 04   # 5, number: offset");
    let having = Having { round: vec![0x11; 4], number: 300 };
    holds(
        &CollectRequest { having: vec![having] },
        "0a 09                  # 1, message: having
         0a 04 11 11 11 11      # 1, bytes: round
         10 ac 02               # 2, number: number",
    );
    holds(
        &Collected {
            batches: vec![ReceiptBatch { round: vec![0x11], receipts: Vec::new() }],
            offers: vec![Offer { round: vec![0x11], visit: 2, passport: Vec::new() }],
        },
        "0a 03 0a 01 11         # 1, message: a batch
         12 05 0a 01 11 10 02   # 2, message: an offer",
    );
    holds(
        &FetchChunksRequest { round: vec![0x11; 4], visit: 2, chunks: vec![3, 300], offset: 300 },
        "0a 04 11 11 11 11      # 1, bytes: round
         10 02                  # 2, number: visit
         1a 03 03 ac 02         # 3, packed numbers: chunks
         20 ac 02               # 4, number: offset",
    );
    holds(
        &OfferAnswer { answer: Some(Answer::Held(Held { receipt: b"{}".to_vec() })) },
        "12 04                  # 2, message: held
         0a 02 7b 7d            # 1, bytes: receipt",
    );
    holds(
        &Chunk {
            round: vec![0x11; 4],
            visit: 2,
            index: 3,
            data: vec![0xaa, 0xbb].into(),
            offset: 0,
        },
        "0a 04 11 11 11 11      # 1, bytes: round
         10 02                  # 2, number: visit
         18 03                  # 3, number: index
         22 02 aa bb            # 4, bytes: data",
    );
}
