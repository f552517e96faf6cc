//! Bytes as text, at the door of every source: UTF-8, with or without a byte order mark. Other formats are known by how they
//! begin, so that the error can say what to do. Pure.

/// Bytes that are no text, or text that is no JSON document by how it begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodingError {
    #[error("no UTF-8 (first bad byte at {at})")]
    Utf8 { at: usize },
    #[error("UTF-16; send UTF-8")]
    Utf16,
    #[error("packed by {how}; send it unpacked")]
    Packed { how: &'static str },
    #[error(
        "in the framing of a schema registry (a zero byte and schema {schema} before the data), as Confluent's serializers \
         write it; have the producer write plain JSON, such as by JsonConverter with schemas.enable=false"
    )]
    SchemaRegistry { schema: u32 },
    #[error("binary (it begins with a zero byte), such as Avro, Protobuf or a number; send JSON text")]
    Binary,
    #[error("an Avro file; send JSON text")]
    Avro,
}

/// The text of bytes, without its byte order mark.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, EncodingError> {
    match bytes {
        [0, a, b, c, d, _, ..] => {
            return Err(EncodingError::SchemaRegistry { schema: u32::from_be_bytes([*a, *b, *c, *d]) });
        }
        [0, ..] => return Err(EncodingError::Binary),
        [0x1f, 0x8b, ..] => return Err(EncodingError::Packed { how: "gzip" }),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(EncodingError::Packed { how: "zstd" }),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(EncodingError::Utf16),
        [b'O', b'b', b'j', 1, ..] => return Err(EncodingError::Avro),
        _ => {}
    }
    let text = std::str::from_utf8(bytes).map_err(|error| EncodingError::Utf8 { at: error.valid_up_to() })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_named() {
        fn said(bytes: &[u8]) -> Result<&str, String> {
            text(bytes).map_err(|error| error.to_string())
        }
        assert_eq!(said("\u{feff}{}".as_bytes()), Ok("{}"));
        assert_eq!(said(b""), Ok(""));
        for (bytes, expected) in [
            (&b"a\xff"[..], "no UTF-8 (first bad byte at 1)"),
            (b"\xff\xfe{\0", "UTF-16; send UTF-8"),
            (b"\x1f\x8b\x08", "packed by gzip; send it unpacked"),
            (b"\x28\xb5\x2f\xfd", "packed by zstd; send it unpacked"),
            (
                b"\0\0\0\0\x05{}",
                "in the framing of a schema registry (a zero byte and schema 5 before the data), as Confluent's serializers \
                 write it; have the producer write plain JSON, such as by JsonConverter with schemas.enable=false",
            ),
            (
                b"\0\0\0\x07",
                "binary (it begins with a zero byte), such as Avro, Protobuf or a number; send JSON text",
            ),
            (b"Obj\x01\x04", "an Avro file; send JSON text"),
        ] {
            assert_eq!(said(bytes), Err(expected.to_owned()));
        }
    }
}
