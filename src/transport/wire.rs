//! WebSocket frames as they go over the wire.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The longest header of a frame that a server sends.
const HEADER: usize = 10;

/// A text frame with what `write` appends, which is about `room` bytes long, and what follows behind
/// it, which is `rest` bytes long; `None` where what is written is no UTF-8, which no text frame may
/// carry. The payload is not copied once it is written.
pub(super) fn text(room: usize, rest: usize, write: impl FnOnce(&mut Vec<u8>)) -> Option<Bytes> {
    let mut bytes = Vec::with_capacity(HEADER + room);
    bytes.resize(HEADER, 0);
    write(&mut bytes);
    let (before, payload) = bytes.split_at_mut_checked(HEADER)?;
    std::str::from_utf8(payload).ok()?;
    let length = u64::try_from(payload.len() + rest).ok()?;
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        ..FrameHeader::default()
    };
    let start = HEADER - header.len(length);
    header.format(length, &mut before.get_mut(start..)?).ok()?;
    Some(Bytes::from(bytes).slice(start..))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tokio_tungstenite::tungstenite::protocol::frame::FrameSocket;

    use super::*;

    #[test]
    fn a_frame_of_any_length_is_read_as_it_was_written() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
            let rest = length.min(21);
            let before = length - rest;
            let frame = text(0, rest, |bytes| bytes.resize(bytes.len() + before, b'x')).unwrap();
            let mut frame = frame.to_vec();
            frame.resize(frame.len() + rest, b'x');
            let mut socket = FrameSocket::new(Cursor::new(frame));
            let read = socket.read(None).unwrap().unwrap();
            assert!(read.header().is_final && read.header().mask.is_none());
            assert_eq!(read.header().opcode, OpCode::Data(Data::Text));
            assert_eq!(read.into_payload(), vec![b'x'; length]);
            assert!(socket.read(None).unwrap().is_none(), "nothing is left");
        }
        assert!(text(0, 0, |bytes| bytes.push(0xff)).is_none());
    }
}
