//! The hello message by which Sentinels tell each other, over the instances they watch, who they are and whom they
//! take for the master (redis sentinel.c, `sentinelSendHello`).
//!
//! ```text
//! ip,port,runid,current_epoch,master_name,master_ip,master_port,master_config_epoch
//! ```

use super::text;

/// Where they are published.
pub const CHANNEL: &str = "__sentinel__:hello";

/// One message, as far as it matters to whoever follows the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The id of the Sentinel that speaks.
    pub run_id: String,
    /// The name of the master.
    pub master: String,
    /// The host it takes the master to be at: printable and short, maybe none at all.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
    /// The number of that opinion: rises with every failover.
    pub epoch: u64,
}

impl Hello {
    /// Reads a message; `None` when it is none.
    pub fn parse(message: &[u8]) -> Option<Hello> {
        let fields: Vec<&[u8]> = message.split(|&byte| byte == b',').collect();
        let [_ip, _port, run_id, _current, master, ip, port, epoch] = fields[..] else { return None };
        let plain = |field: &[u8]| {
            let fits = (1..=128).contains(&field.len()) && field.iter().all(u8::is_ascii_graphic);
            fits.then(|| text::excerpt(field))
        };
        Some(Hello {
            run_id: plain(run_id)?,
            master: plain(master)?,
            host: plain(ip)?,
            port: text::natural(port).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?,
            epoch: text::natural(epoch)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_captured_hello_is_read() {
        let said = b"127.0.0.1,26379,8de1787ba490483314a4d30f1c628bc5025eb761,3,mymaster,::1,6380,2";
        assert_eq!(
            Hello::parse(said),
            Some(Hello {
                run_id: "8de1787ba490483314a4d30f1c628bc5025eb761".into(),
                master: "mymaster".into(),
                host: "::1".into(),
                port: 6380,
                epoch: 2,
            })
        );
    }

    #[test]
    fn what_is_no_hello_says_nothing() {
        for bad in [
            "",
            "a,b",
            "1,2,3,4,5,6,7,8,9",
            "ip,1,id,1,name,host,0,1",
            "ip,1,id,1,name,ho st,1,1",
            "ip,1,id,1,name,host,1,-1",
        ] {
            assert_eq!(Hello::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_makes_it_panic(bytes: Vec<u8>) {
            let _ = Hello::parse(&bytes);
        }
    }
}
