//! The coordinator as a server: HTTP outside, the state machine inside.
//!
//! # Layout
//!
//! - this file: [`Server`], a thread that serves a run.
//! - `connection`: who may connect, for how long; TLS.
//! - `routes`: which request means which event, and who may send it.
//! - `keeper`: the one task that owns the state machine; the run folder's thread beside it.
//! - `show`: status, metrics and targets; `page`: the same for people.
//! - [`tls`]: certificate and key.

mod connection;
mod keeper;
mod page;
mod routes;
mod show;
pub mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use synfire_shared::metrics::CoordinatorMetrics;
use synfire_shared::protocol::Order;
use synfire_shared::storage::Store;
use synfire_shared::token::Token;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::event::{Event, Level, Reply};
use crate::policy::Policy;
use crate::view::View;
pub use tls::Tls;

/// Messages that wait for the state machine; more of them wait to be read.
const QUEUE: usize = 256;

/// Told every line of the log, on the thread of the server, which must not be held up.
pub type Observer = Box<dyn FnMut(Level, &str) + Send>;

/// What a server needs to know.
pub struct Options {
    /// Where it listens; port 0 means any that is free.
    pub listen: SocketAddr,
    /// What workers and operators show.
    pub token: Token,
    /// Certificate and key; without them it speaks plain HTTP.
    pub tls: Option<Tls>,
    /// How many ranks are wanted.
    pub policy: Policy,
    /// Who is told the lines of the log, in place of `tracing`.
    pub observer: Option<Observer>,
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Options");
        shown.field("listen", &self.listen);
        shown.field("tls", &self.tls.is_some());
        shown.field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: choose another port, or an address of this machine")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gives no thread or no event queue.
    #[error("cannot start the coordinator's threads")]
    Start(#[source] io::Error),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// A run that is served. Dropping it stops the server; workers go on training and look for another.
pub struct Server {
    address: SocketAddr,
    token: Token,
    has_tls: bool,
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<View>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Server");
        shown.field("address", &self.address);
        shown.finish_non_exhaustive()
    }
}

/// An event for the state machine, and where its answer goes.
struct Message {
    event: Box<dyn FnOnce(u64) -> Event + Send>,
    reply: oneshot::Sender<Reply>,
}

/// What handlers of requests share.
struct Shared {
    token: Token,
    policy: Policy,
    metrics: Arc<CoordinatorMetrics>,
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<View>>,
}

impl Server {
    /// Serves the run whose folder `store` is, which has its checkpoints in `checkpoints`.
    ///
    /// # Errors
    /// [`ServeError`]: the address cannot be listened on, or the operating system gives no thread.
    pub fn start(options: Options, store: Store, checkpoints: &str) -> Result<Self, ServeError> {
        let address = options.listen;
        let listen = |source| ServeError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let runtime = runtime().map_err(ServeError::Start)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(ServeError::Start)?
        };
        let metrics = Arc::new(CoordinatorMetrics::new());
        let (messages, inbox) = mpsc::channel(QUEUE);
        let folder = keeper::Folder::open(store, checkpoints).map_err(ServeError::Start)?;
        let policy = options.policy.clone();
        let (keeper, view) = keeper::Keeper::new(
            options.policy,
            folder,
            Arc::clone(&metrics),
            options.observer,
        );
        let shared = Arc::new(Shared {
            token: options.token.clone(),
            policy,
            metrics,
            messages: messages.clone(),
            view: view.clone(),
        });
        let has_tls = options.tls.is_some();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            runtime.spawn(connection::accept(listener, options.tls, shared));
            runtime.spawn(keeper.run(inbox));
            // The thread drives the tasks until it is told to stop.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new()
            .name("coordinator".into())
            .spawn(serve);
        Ok(Self {
            address,
            token: options.token,
            has_tls,
            messages,
            view,
            stop: Some(stop),
            thread: Some(thread.map_err(ServeError::Start)?),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for workers on this machine or, where it listens on one address, on any.
    pub fn url(&self) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("{scheme}://{address}")
    }

    /// What workers and operators show.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The state of the run, at most a quarter of a second old.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What an operator wants, as with `POST /v1/directive`. Does not wait.
    ///
    /// # Errors
    /// The order, where so many messages wait that it has no place, or the server has stopped.
    pub fn order(&self, order: Order) -> Result<(), Order> {
        let (reply, _) = oneshot::channel();
        let event = Box::new(move |id| Event::Order(id, order));
        let sent = self.messages.try_send(Message { event, reply });
        sent.map_err(|_| order)
    }

    /// Stops at once; workers go on training and look for another coordinator.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropping the sender stops the thread, which waits for nothing.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A token of 128 random bits.
///
/// # Errors
/// [`ServeError::Random`].
pub fn draw_token() -> Result<Token, ServeError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(ServeError::Random)?;
    Ok(Token::of_random(bits))
}

fn runtime() -> io::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_io().enable_time().build()
}
