//! Whoever watches leases, and what waits for each of them: so many bytes, and no more.
//!
//! Who is slower than that is cut off, and counted. Knows nothing of sockets, nor of leases.

use std::{convert::Infallible, ops::Deref, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Everybody who watches.
#[derive(Debug)]
pub struct Watchers {
    watchers: Vec<Watcher>,
    bytes_max: u32,
    lost: u64,
}

/// One who watches, as the teller has it.
#[derive(Debug)]
struct Watcher {
    /// A permit for each byte that may still wait.
    room: Arc<Semaphore>,
    news: mpsc::UnboundedSender<News>,
    /// Dropped once too much has waited.
    _holds: oneshot::Sender<Infallible>,
}

/// What one who watches gets to hear.
#[derive(Debug)]
pub struct Events {
    news: mpsc::UnboundedReceiver<News>,
    lost: oneshot::Receiver<Infallible>,
}

/// Lines that tell of changes; they wait until this is dropped.
#[derive(Debug)]
pub struct News {
    lines: Arc<[u8]>,
    _room: OwnedSemaphorePermit,
}

impl Deref for News {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.lines
    }
}

impl Watchers {
    /// Nobody; for each that comes so many bytes may wait.
    pub fn new(bytes_max: u32) -> Self {
        Self {
            watchers: Vec::new(),
            bytes_max,
            lost: 0,
        }
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// How many were cut off since the start.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// One more, who hears what is told from now on.
    pub fn admit(&mut self) -> Events {
        let (news, to_come) = mpsc::unbounded_channel();
        let (holds, lost) = oneshot::channel();
        self.watchers.push(Watcher {
            room: Arc::new(Semaphore::new(self.bytes_max as usize)),
            news,
            _holds: holds,
        });
        Events {
            news: to_come,
            lost,
        }
    }

    /// Forgets those who are gone.
    pub fn forget_gone(&mut self) {
        self.watchers.retain(|watcher| !watcher.news.is_closed());
    }

    /// Tells everybody; cuts off for whom too much would wait then.
    pub fn tell(&mut self, lines: &[u8]) {
        self.forget_gone();
        let bytes = u32::try_from(lines.len()).unwrap_or(u32::MAX);
        let lines: Arc<[u8]> = match bytes > self.bytes_max {
            // Nobody has room for it.
            true => Arc::default(),
            false => lines.into(),
        };
        self.watchers.retain(|watcher| {
            let Ok(room) = Arc::clone(&watcher.room).try_acquire_many_owned(bytes) else {
                self.lost += 1;
                return false;
            };
            let news = News {
                lines: Arc::clone(&lines),
                _room: room,
            };
            watcher.news.send(news).is_ok()
        });
    }
}

impl Events {
    /// Waits for the next lines; `None` once too much has waited: what still did is not sent then.
    pub async fn next(&mut self) -> Option<News> {
        tokio::select! {
            biased;
            _ = &mut self.lost => None,
            news = self.news.recv() => news,
        }
    }

    /// Waits until too much has waited. Nothing comes after that.
    pub async fn lost(&mut self) {
        let _ = (&mut self.lost).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime")
    }

    #[test]
    fn what_waits_is_bounded_to_the_byte() {
        let mut watchers = Watchers::new(8);
        let (mut slow, mut quick) = (watchers.admit(), watchers.admit());
        runtime().block_on(async {
            watchers.tell(b"12345");
            let first = quick.next().await.expect("news");
            assert_eq!(&*first, b"12345");
            // It waits as long as it is being sent.
            watchers.tell(b"678");
            drop(first);
            assert_eq!(watchers.lost(), 0, "as much as may wait");
            watchers.tell(b"9");
            assert_eq!(watchers.lost(), 1);
            assert!(slow.next().await.is_none(), "it is over at once");
            for lines in ["678", "9"] {
                assert_eq!(&*quick.next().await.expect("news"), lines.as_bytes());
            }
            watchers.tell(b"12345678");
            let whole = quick.next().await.expect("news");
            watchers.tell(b"9");
            quick.lost().await;
            assert_eq!((watchers.lost(), whole.len()), (2, 8));
            assert!(watchers.is_empty());
        });
    }

    #[test]
    fn what_has_room_nowhere_cuts_everybody_off() {
        let mut watchers = Watchers::new(8);
        let mut events = [watchers.admit(), watchers.admit()];
        watchers.tell(b"123456789");
        assert_eq!(watchers.lost(), 2);
        for events in &mut events {
            assert!(runtime().block_on(events.next()).is_none());
        }
    }

    #[test]
    fn who_is_gone_is_not_lost() {
        let mut watchers = Watchers::new(8);
        drop(watchers.admit());
        watchers.tell(b"123456789");
        assert_eq!((watchers.is_empty(), watchers.lost()), (true, 0));
        drop(watchers.admit());
        watchers.forget_gone();
        assert!(watchers.is_empty());
    }
}
