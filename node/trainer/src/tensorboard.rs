//! Event files that TensorBoard reads: scalars over the updates of a visit.
//!
//! A file is a sequence of records, each `length u64 · masked CRC-32C of the length · data · masked
//! CRC-32C of the data`, little endian (TensorFlow's `record_writer.cc`); the data is an `Event` of
//! TensorFlow's `event.proto`, of which the fields used here are declared below. A later file of the
//! same folder begins with a `START` of its first update: TensorBoard then forgets what an earlier
//! file says of that update and later ones, which a killed visit makes again.

use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What the first event of every file says.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Unix time in seconds.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value` with its `simple_value`. That one is of a oneof, so it is written even where it is 0.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file being written.
pub(crate) struct Writer {
    file: File,
}

impl Writer {
    /// Begins a file in `folder`; the next event will be of update `first`.
    pub(crate) fn begin(folder: &Path, first: u32) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = since_epoch();
        // Files of a folder are read in the order of their names.
        let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
        let name = format!("events.out.tfevents.{seconds:010}.{nanos:09}.rondo");
        let file = OpenOptions::new().append(true).create_new(true).open(folder.join(name))?;
        let mut writer = Self { file };
        writer.write(0, What::FileVersion(VERSION.to_owned()))?;
        writer.write(first, What::SessionLog(SessionLog { status: START }))?;
        Ok(writer)
    }

    /// Adds the figures of one update.
    pub(crate) fn scalars(&mut self, update: u32, figures: &[(&str, f32)]) -> io::Result<()> {
        let scalar = |(tag, value): &(&str, f32)| Scalar {
            tag: (*tag).to_owned(),
            simple_value: Some(*value),
        };
        let value = figures.iter().map(scalar).collect();
        self.write(update, What::Summary(Summary { value }))
    }

    fn write(&mut self, update: u32, what: What) -> io::Result<()> {
        let wall_time = since_epoch().as_secs_f64();
        let event = Event { wall_time, step: i64::from(update), what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked(data).to_le_bytes());
    record
}

/// A checksum that may itself lie in checksummed data (TensorFlow's `crc32c.h`).
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// What a file says, its events checked: step, and tag with value, or a word of the event.
    pub(crate) fn read(bytes: &[u8]) -> Vec<(i64, String, f32)> {
        let mut rest = bytes;
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (length, tail) = rest.split_first_chunk::<8>().unwrap();
            let (checksum, tail) = tail.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*checksum), masked(length));
            let size = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            let (data, tail) = tail.split_at_checked(size).unwrap();
            let (checksum, tail) = tail.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*checksum), masked(data));
            rest = tail;
            let event = Event::decode(data).unwrap();
            assert!(event.wall_time > 1.6e9);
            match event.what.unwrap() {
                What::FileVersion(version) => found.push((event.step, version, 0.0)),
                What::SessionLog(log) => {
                    found.push((event.step, format!("log {}", log.status), 0.0))
                }
                What::Summary(summary) => found.extend(
                    summary.value.into_iter().map(|s| (event.step, s.tag, s.simple_value.unwrap())),
                ),
            }
        }
        found
    }

    #[test]
    fn checksums_are_the_known_ones() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c::crc32c(&ascending), 0x46dd_794e);
        // 0xe3069283 turned right by 15 bits is 0x2507c60d.
        assert_eq!(masked(b"123456789"), 0x2507_c60d_u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_is_framed_as_tensorflow_frames_it() {
        let event = Event {
            wall_time: 1.5,
            step: 3,
            what: Some(What::Summary(Summary {
                value: vec![Scalar { tag: "a".to_owned(), simple_value: Some(0.0) }],
            })),
        };
        // wall_time (1, fixed64), step (2, varint), summary (5) { value (1) { tag (1), simple_value (2) } }.
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 3, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0,
            0, 0, 0,
        ];
        let data = event.encode_to_vec();
        assert_eq!(data, expected);
        let record = record(&data);
        assert_eq!(record[..8], 23_u64.to_le_bytes());
        assert_eq!(record.len(), 8 + 4 + 23 + 4);
    }

    #[test]
    fn files_read_back_and_later_ones_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("tensorboard");
        Writer::begin(&place, 1)
            .unwrap()
            .scalars(1, &[("loss/ce", 0.5), ("loss/kdl", 0.0)])
            .unwrap();
        Writer::begin(&place, 8).unwrap();
        let mut names: Vec<_> = fs::read_dir(&place).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let files: Vec<_> = names.iter().map(|n| read(&fs::read(n).unwrap())).collect();
        let event = |step, word: &str, value| (step, word.to_owned(), value);
        assert_eq!(
            files[0],
            [
                event(0, VERSION, 0.0),
                event(1, "log 1", 0.0),
                event(1, "loss/ce", 0.5),
                event(1, "loss/kdl", 0.0)
            ]
        );
        assert_eq!(files[1], [event(0, VERSION, 0.0), event(8, "log 1", 0.0)]);
    }
}
