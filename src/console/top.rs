//! `psyncd top`: the status in place, redrawn every so often, until somebody presses q.
//!
//! Plain ANSI on the alternate screen; the terminal is put back as it was however this ends, short of SIGKILL.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::document::Status;
use super::look;
use super::show::{self, Speeds};
use super::words::plain;
use crate::control::{Error, Place};

/// What is drawn on when the terminal does not say how large it is.
const SIZE: (usize, usize) = (80, 24);

/// Shows the status of the psyncd at `place`, anew `every` so often, until q, ctrl-c or SIGTERM. A psyncd that does not
/// answer is waited for, and that is said.
///
/// # Errors
/// When standard input or output is no terminal, or cannot be made one for single keys.
pub async fn run(place: &Place, every: Duration) -> io::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let why = "top draws on a terminal, and this is none: use `psyncd status --watch` or `psyncd status --json`";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let mut resized = signal(SignalKind::window_change())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let screen = Screen::take()?;
    let mut keys = keys();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            key = keys.recv() => match key {
                Some(b'q' | b'Q' | 3 | 4) | None => return Ok(()),
                Some(_) => seen.look(place).await,
            },
            _ = resized.recv() => {}
            _ = ticks.tick() => seen.look(place).await,
        }
        let (columns, rows) = screen.size();
        screen.draw(&frame(&seen, place, columns), columns, rows)?;
    }
}

/// The last looks.
#[derive(Default)]
struct Seen {
    now: Option<(Status, Instant)>,
    speeds: Speeds,
    failure: Option<Error>,
}

impl Seen {
    async fn look(&mut self, place: &Place) {
        match look::status(place).await {
            Ok(status) => {
                let at = Instant::now();
                if let Some((before, then)) = &self.now {
                    let elapsed = at.duration_since(*then).as_secs_f64();
                    // Two keys at once would measure nothing.
                    if elapsed < 0.2 {
                        return;
                    }
                    self.speeds = Speeds::between(before, &status, elapsed);
                }
                self.now = Some((status, at));
                self.failure = None;
            }
            Err(error) => self.failure = Some(error),
        }
    }
}

fn frame(seen: &Seen, place: &Place, columns: usize) -> String {
    let mut text = format!("psyncd at {}    q quits\n", plain(&place.to_string()));
    if let Some(error) = &seen.failure {
        let since = seen.now.as_ref().map_or(0.0, |(_, at)| at.elapsed().as_secs_f64());
        text.push_str(&format!("NO ANSWER: {}\n", plain(&error.to_string())));
        if seen.now.is_some() {
            text.push_str(&format!("what follows is {since:.0} s old\n"));
        }
    }
    text.push('\n');
    if let Some((status, _)) = &seen.now {
        text.push_str(&show::status(status, &seen.speeds, columns.min(160)));
    }
    text
}

/// `text` for a screen of that size: lines are cut at its right edge, and what is below its last row is counted.
fn fitted(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| line.chars().take(columns).collect()).collect();
    if lines.len() > rows {
        let hidden = lines.len() + 1 - rows.max(1);
        lines.truncate(rows.max(1) - 1);
        lines.push(format!("... {hidden} more lines").chars().take(columns).collect());
    }
    lines
}

/// The keys pressed. The thread ends with the process: nothing can take a read of a terminal back.
fn keys() -> mpsc::Receiver<u8> {
    let (press, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut key = [0];
        while let Ok(1) = io::stdin().read(&mut key) {
            if press.blocking_send(key[0]).is_err() {
                return;
            }
        }
    });
    keys
}

/// The terminal while it is ours. The drop gives it back.
struct Screen {
    before: Termios,
}

impl Screen {
    fn take() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut single = before.clone();
        single.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        single.special_codes[SpecialCodeIndex::VMIN] = 1;
        single.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &single)?;
        let screen = Self { before };
        // The alternate screen, and no cursor.
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (usize::from(size.ws_col), usize::from(size.ws_row)),
            Ok(_) | Err(_) => SIZE,
        }
    }

    fn draw(&self, text: &str, columns: usize, rows: usize) -> io::Result<()> {
        // Each line is cleared behind its end rather than the screen before, which would flicker.
        let lines = fitted(text, columns, rows).join("\x1b[K\r\n");
        write(&format!("\x1b[H{lines}\x1b[K\x1b[J"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone need not be restored.
        let _ = write("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::super::document::example;
    use super::*;

    #[test]
    fn a_frame_fits_the_screen() {
        let mut status = example();
        while status.replicas.len() < 40 {
            let another = status.replicas[0].clone();
            status.replicas.push(another);
        }
        let seen = Seen { now: Some((status, Instant::now())), ..Seen::default() };
        let text = frame(&seen, &Place::Socket("/run/psyncd.sock".into()), 80);
        let lines = fitted(&text, 80, 24);
        assert_eq!(lines.len(), 24);
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
        assert!(lines[23].starts_with("... ") && lines[23].ends_with(" more lines"), "{}", lines[23]);
        assert_eq!(fitted("abc\ndef\n", 2, 9), ["ab", "de"]);
        assert_eq!(fitted("a\nb\n", 20, 1), ["... 2 more lines"]);
    }

    #[test]
    fn a_psyncd_that_does_not_answer_is_named_and_the_last_look_stays() {
        let place = Place::Socket("/run/psyncd.sock".into());
        let failure = Some(Error::NobodyAnswers(place.clone()));
        let seen = Seen { now: Some((example(), Instant::now())), failure, ..Seen::default() };
        let text = frame(&seen, &place, 80);
        assert!(
            text.contains("NO ANSWER: nobody answers at /run/psyncd.sock") && text.contains("10.0.0.2:1"),
            "{text}"
        );
    }
}
