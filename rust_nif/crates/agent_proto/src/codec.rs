//! Our own codec: a message that cannot be decoded is a typed error, not INTERNAL.
//!
//! tonic's own limits stand above these; unknown field numbers are ignored (forward compatibility).

use std::collections::HashMap;
use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Largest message that is decoded, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "singularity.agents";

/// Codec of every method.
#[derive(Debug)]
pub struct TypedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for TypedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for TypedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = TypedEncoder<T>;
    type Decoder = TypedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        TypedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        TypedDecoder(PhantomData)
    }
}

/// Encodes a message.
#[derive(Debug)]
pub struct TypedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for TypedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|e| Status::internal(format!("the answer cannot be encoded: {e}")))
    }
}

/// Decodes a message, or says what is wrong with it.
#[derive(Debug)]
pub struct TypedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for TypedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if buf.remaining() > MAX_MESSAGE_BYTES {
            let text =
                format!("the message has {} bytes, at most {MAX_MESSAGE_BYTES} are allowed; use an artefact for more", buf.remaining());
            let limit = [("max_bytes".to_owned(), MAX_MESSAGE_BYTES.to_string())];
            return Err(refuse("PAYLOAD_TOO_LARGE", &text, limit.into()));
        }
        U::decode(buf).map(Some).map_err(|e| {
            let text = e.to_string();
            if text.contains("recursion limit") {
                refuse("NESTING_TOO_DEEP", "the message is nested deeper than 100 levels", HashMap::new())
            } else {
                refuse("INVALID_FIELD", &format!("the message cannot be decoded: {text}"), HashMap::new())
            }
        })
    }
}

/// The field of a message that cannot be read: all of it.
const WHOLE: &str = "request";

fn refuse(reason: &str, message: &str, metadata: HashMap<String, String>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, ERROR_DOMAIN, metadata);
    details.add_bad_request_violation(WHOLE, message);
    Status::with_error_details(Code::InvalidArgument, message, details)
}
