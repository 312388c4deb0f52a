//! A safetensors file from its tensors. Most changes to such a file change a length that stands elsewhere in it, and
//! would get no further than the header.

/// What separates tensors.
const MARK: &[u8] = b"\xff\xfe";

/// The file that `data` lists the tensors of: each as a name, a dtype, a shape, every one with an end of line, and its
/// bytes. A shape `*` is as many elements as there are bytes for.
pub(crate) fn file(data: &[u8]) -> Vec<u8> {
    let (mut header, mut bytes) = (Vec::new(), Vec::new());
    let mut rest = Some(data);
    while let Some(now) = rest {
        let end = now.windows(MARK.len()).position(|w| w == MARK).unwrap_or(now.len());
        let (tensor, later) = now.split_at(end);
        header.push(add(tensor, &mut bytes));
        rest = later.strip_prefix(MARK);
    }
    let header = format!("{{{}}}", header.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat()
}

/// Adds the tensor's bytes to those of the others. Its entry in the header.
fn add(tensor: &[u8], bytes: &mut Vec<u8>) -> String {
    let mut lines = tensor.splitn(4, |&b| b == b'\n');
    let [name, dtype, shape, data] = std::array::from_fn(|_| lines.next().unwrap_or_default());
    let text = |x| String::from_utf8_lossy(x).into_owned();
    let width = match dtype {
        b"F64" => 8,
        b"F32" => 4,
        b"F16" | b"BF16" => 2,
        _ => 1,
    };
    let shape = if shape == b"*" { format!("[{}]", data.len() / width) } else { text(shape) };
    let (name, dtype) = (serde_json::Value::from(text(name)), serde_json::Value::from(text(dtype)));
    let begin = bytes.len();
    bytes.extend(data);
    format!(r#"{name}:{{"dtype":{dtype},"shape":{shape},"data_offsets":[{begin},{}]}}"#, bytes.len())
}
