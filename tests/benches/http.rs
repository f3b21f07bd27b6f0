//! Whole HTTP commands per second: registering a meeting over 64 connections, load generator and server in
//! one process on the same cores, against one row per transaction at 64 clients. Beside it the same without
//! authentication, to show what that costs, also of the cheapest of reads; and an empty route that echoes the same
//! JSON, to show what HTTP alone costs.
//!
//! `cargo bench --bench http`; ROUNDS and SECONDS change how long it takes.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::app::{AppState, app, unguarded};
use api::auth::{Auth, Caller, Kind, Role};
use api::config::ServeConfig;
use api::matching::Matching;
use clap::Parser;
use tests::bench::{Baseline, BenchCluster, quantile, setting};
use tests::workload::Workload;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const CONNECTIONS: usize = 64;

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    serve: ServeConfig,
}

#[tokio::main]
async fn main() {
    let rounds = setting("ROUNDS", 5);
    let duration = Duration::from_secs(setting("SECONDS", 3));
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("http").await;
    let mut workload = Workload::new(2, 1);
    let samples = (0..200).map(|_| workload.next_registration()).collect::<Vec<_>>();
    let baseline = Baseline::create(&cluster, &database, &samples).await;

    let book = Arc::new(database.open().await);
    book.start_projector();
    let metrics = api::telemetry::init_metrics().expect("metrics start once");
    let mut config = Defaults::parse_from(["bench", "--rate-limit", "1000000000"]).serve;
    config.auth.issuer.signing_key_file = Some(tests::tokens::signing_key_file());
    let auth = Auth::open(&config.auth, None).await.expect("a key for tokens");
    let matching = Matching::new(&config, config.policies().expect("the default policies are valid"));
    let following = matching.voices.clone().follow(book.store.clone(), book.shutdown.clone());
    book.tasks.spawn(following);
    let state = AppState::new(Arc::clone(&book), auth, config, matching, metrics, CancellationToken::new());
    let caller = Caller {
        subject: "bench".into(),
        kind: Kind::Service,
        role: Role::Pipeline,
        owner: None,
        expires_at: u64::MAX,
        key: "".into(),
    };
    let open = serve(unguarded(state.clone(), caller)).await;
    let server = serve(app(state)).await;
    let echo = axum::Router::new().route("/v1/meetings", axum::routing::post(async |body: String| body));
    let echo = serve(echo).await;

    let token = Arc::<str>::from(format!("Bearer {}", tests::tokens::token(Role::Pipeline, "bench")));
    let (mut ratios, mut ours, mut theirs, mut echoes, mut p99s) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut kept, mut kept_of_reads, mut reads) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        let base = baseline.run(CONNECTIONS, duration).await;
        // By turns first and second: the machine is not the same from moment to moment.
        let sides = if round % 2 == 0 { [server, open] } else { [open, server] };
        let mut rates = [(0.0, Duration::ZERO); 2];
        let mut read_rates = [0.0; 2];
        for side in sides {
            rates[usize::from(side == open)] = load(side, duration, Asked::Registration, &token).await;
            read_rates[usize::from(side == open)] = load(side, duration / 3, Asked::Miss, &token).await.0;
        }
        let [(commands, p99), (unguarded, _)] = rates;
        let (echoed, _) = load(echo, duration / 3, Asked::Echo, &token).await;
        ratios.push(commands / base);
        kept.push(commands / unguarded);
        kept_of_reads.push(read_rates[0] / read_rates[1]);
        reads.push(read_rates[0]);
        ours.push(commands);
        theirs.push(base);
        echoes.push(echoed);
        p99s.push(p99);
    }
    println!(
        "baseline/s  commands/s   ratio    p99      echo/s  (medians of {rounds} rounds of {duration:?})"
    );
    println!(
        "{:>10.0}  {:>10.0}  {:>5.2}x  {:>6.1?}  {:>8.0}",
        quantile(&mut theirs, 0.5),
        quantile(&mut ours, 0.5),
        quantile(&mut ratios, 0.5),
        quantile(&mut p99s, 0.5),
        quantile(&mut echoes, 0.5),
    );
    println!(
        "with authentication, of what there is without: commands {:.3}x, reads that miss {:.3}x ({:.0}/s)",
        quantile(&mut kept, 0.5),
        quantile(&mut kept_of_reads, 0.5),
        quantile(&mut reads, 0.5),
    );
    let book = Arc::into_inner(book);
    if let Some(book) = book {
        book.close().await;
    }
    cluster.stop().await;
}

async fn serve(router: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(axum::serve(listener, router).into_future());
    address
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// A command: a new meeting.
    Registration,
    /// The cheapest of reads: a cached result that there is not.
    Miss,
    /// The registration, of a server that does nothing.
    Echo,
}

/// Asks over kept-alive connections; returns answers per second and the 99th percentile of their latency. Every
/// answer must have the status that it should.
async fn load(server: SocketAddr, duration: Duration, asked: Asked, token: &Arc<str>) -> (f64, Duration) {
    let started = Instant::now();
    let deadline = started + duration;
    let connections =
        (0..CONNECTIONS).map(|_| tokio::spawn(connection(server, deadline, asked, Arc::clone(token))));
    let done = futures::future::join_all(connections).await;
    let elapsed = started.elapsed();
    let mut latencies =
        done.into_iter().flat_map(|done| done.expect("a connection ends well")).collect::<Vec<_>>();
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    (rate, quantile(&mut latencies, 0.99))
}

async fn connection(server: SocketAddr, deadline: Instant, asked: Asked, token: Arc<str>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(server).await.expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    let mut random = fastrand::Rng::new();
    let mut buffer = vec![0; 16 * 1024];
    let mut latencies = vec![];
    let status = match asked {
        Asked::Registration => "201",
        Asked::Miss => "404",
        Asked::Echo => "200",
    };
    while Instant::now() < deadline {
        let sha256 = (0..64).map(|_| random.digit(16)).collect::<String>();
        let body = format!(r#"{{"sha256":"{sha256}","mime":"audio/flac","size":31457280,"duration":1800}}"#);
        let request = match asked {
            Asked::Registration | Asked::Echo => format!(
                "POST /v1/meetings HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\ncontent-type: \
                 application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
            Asked::Miss => format!(
                "GET /v1/cache/asr:{sha256} HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\n\r\n"
            ),
        };
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let answered = read_response(&mut stream, &mut buffer).await;
        assert_eq!(answered, status, "{}", String::from_utf8_lossy(&buffer));
        latencies.push(sent.elapsed());
    }
    latencies
}

/// Reads one response with a content-length; returns its status.
async fn read_response(stream: &mut TcpStream, buffer: &mut [u8]) -> String {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await.expect("the server answers");
        assert!(read > 0, "the server closed the connection");
        filled += read;
        let text = std::str::from_utf8(&buffer[..filled]).expect("an answer in UTF-8");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse::<usize>().ok()).expect("a content-length");
        if body.len() >= length {
            return head[9..12].to_owned();
        }
    }
}
