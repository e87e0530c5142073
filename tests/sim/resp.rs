//! What the models read and write. Written apart from psyncd's own parsers, so that both must agree.

/// One command as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A bare line end between commands.
    Newline,
    /// A command, RESP or inline.
    Command(Vec<Vec<u8>>),
}

/// Collects bytes and gives commands back.
#[derive(Debug, Default)]
pub struct Commands {
    buffer: Vec<u8>,
}

impl Commands {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes fed and not yet taken.
    pub fn unread(&self) -> usize {
        self.buffer.len()
    }

    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// The next whole item and its length in bytes, or what is wrong with the input.
    pub fn next(&mut self) -> Result<Option<(Item, usize)>, String> {
        let Some((item, len)) = parse(&self.buffer)? else { return Ok(None) };
        self.buffer.drain(..len);
        Ok(Some((item, len)))
    }
}

fn line(buffer: &[u8]) -> Option<(&[u8], usize)> {
    let end = buffer.iter().take(70_000).position(|&b| b == b'\n')?;
    let text = &buffer[..end];
    Some((text.strip_suffix(b"\r").unwrap_or(text), end + 1))
}

fn number(text: &[u8]) -> Result<usize, String> {
    str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| format!("bad length {:?}", String::from_utf8_lossy(text)))
}

fn parse(buffer: &[u8]) -> Result<Option<(Item, usize)>, String> {
    let Some(&first) = buffer.first() else { return Ok(None) };
    let Some((head, mut at)) = line(buffer) else { return Ok(None) };
    if first != b'*' {
        let words: Vec<Vec<u8>> = head.split(|b| *b == b' ').filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect();
        let item = if words.is_empty() { Item::Newline } else { Item::Command(words) };
        return Ok(Some((item, at)));
    }
    let mut args = Vec::new();
    for _ in 0..number(&head[1..])? {
        let Some((head, used)) = line(&buffer[at..]) else { return Ok(None) };
        if head.first() != Some(&b'$') {
            return Err(format!("no bulk but {:?}", String::from_utf8_lossy(head)));
        }
        at += used;
        let len = number(&head[1..])?;
        let Some(body) = buffer.get(at..at + len + 2) else { return Ok(None) };
        if !body.ends_with(b"\r\n") {
            return Err("a bulk without its end".into());
        }
        args.push(body[..len].to_vec());
        at += len + 2;
    }
    Ok(Some((Item::Command(args), at)))
}

/// A command as a RESP array.
pub fn array(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A command of words without blanks, as a RESP array.
pub fn words(text: &str) -> Vec<u8> {
    array(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// Whether `arg` is `word` in any case.
pub fn is(arg: Option<&Vec<u8>>, word: &str) -> bool {
    arg.is_some_and(|a| a.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_out_whole_however_they_go_in() {
        let mut input = words("SET a 1");
        input.extend_from_slice(b"\nPING\r\n");
        input.extend(array(&[b"", b"x\r\ny"]));
        let mut commands = Commands::default();
        let mut out = Vec::new();
        for byte in &input {
            commands.feed(&[*byte]);
            while let Some(item) = commands.next().unwrap() {
                out.push(item);
            }
        }
        assert_eq!(out.iter().map(|(_, n)| n).sum::<usize>(), input.len());
        assert_eq!(out.len(), 4);
        assert_eq!(out[1].0, Item::Newline);
        assert_eq!(out[3].0, Item::Command(vec![b"".to_vec(), b"x\r\ny".to_vec()]));
    }
}
