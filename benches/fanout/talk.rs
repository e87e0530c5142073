//! The little of the protocol that both ends of the harness need: reading commands and lines, naming offsets.

/// Takes the next command, RESP or inline, off the front of `buffer`. Empty lines are skipped.
pub fn take_command(buffer: &mut Vec<u8>) -> Option<Vec<String>> {
    loop {
        match buffer.first()? {
            b'\r' | b'\n' => {
                buffer.remove(0);
            }
            b'*' => {
                let (args, used) = array(buffer)?;
                buffer.drain(..used);
                return Some(args);
            }
            _ => {
                let line = take_line(buffer)?;
                return Some(line.split_whitespace().map(str::to_owned).collect());
            }
        }
    }
}

/// Takes the next line off the front of `buffer`, without its end.
pub fn take_line(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.iter().position(|&byte| byte == b'\n')?;
    let line = String::from_utf8_lossy(&buffer[..end]).trim_end_matches('\r').to_owned();
    buffer.drain(..=end);
    Some(line)
}

fn array(buffer: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut at = 0;
    let count = number(buffer, &mut at)?;
    let mut args = Vec::new();
    for _ in 0..count {
        let len = number(buffer, &mut at)?;
        args.push(String::from_utf8_lossy(buffer.get(at..at + len)?).into_owned());
        at += len + 2;
    }
    (at <= buffer.len()).then_some((args, at))
}

/// The number of a `*3\r\n` or `$3\r\n` at `at`, which is moved behind it.
fn number(buffer: &[u8], at: &mut usize) -> Option<usize> {
    let rest = buffer.get(*at..)?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let value = std::str::from_utf8(&rest[1..end]).ok()?.trim_end().parse().ok()?;
    *at += end + 1;
    Some(value)
}

/// An array of bulks.
pub fn command(args: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len());
    for arg in args {
        out.push_str(&format!("${}\r\n{arg}\r\n", arg.len()));
    }
    out.into_bytes()
}

/// What a replica acknowledges with.
pub fn ack(offset: u64) -> Vec<u8> {
    command(&["REPLCONF", "ACK", &offset.to_string()])
}

/// The request for the stream behind `offset`, or for everything. On the wire stands the next byte wanted.
pub fn psync(position: Option<(&str, u64)>) -> Vec<u8> {
    match position {
        Some((id, offset)) => command(&["PSYNC", id, &(offset + 1).to_string()]),
        None => command(&["PSYNC", "?", "-1"]),
    }
}
