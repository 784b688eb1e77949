//! Jetway is an RDP gateway: one binary, one port, in front of Windows and Linux desktops.
//!
//! A user opens a `.rdp` file. In it, `pcb` (the RDP preconnection PDU) carries a token, or `loadbalanceinfo` (the X.224
//! routing token) carries a short ticket for one. Jetway reads it before anything else, verifies it, and does what it
//! says, or refuses and says why.
//!
//! This page is the map. The words are those of the specifications: JET ([JET-PROTO] 0.3), RDP ([MS-RDPBCGR],
//! [MS-RDPEPS]), JOSE (RFC 7515 to 7519).
//!
//! # From socket to relay
//!
//! | step | file | what it makes of the one before |
//! |---|---|---|
//! | accept, within limits | [`gateway::listener`] | a connection with a place among the others and a correlation id |
//! | which protocol? | [`entry::preamble`], [`gateway::session::identify`] | PROXY header and TLS taken off; RDP, HTTP or JET |
//! | who serves it? | [`gateway::arrival`] | the steps below, the [API](gateway::api), or the [server of peers](gateway::rendezvous) |
//! | where is the token? | [`rdp::preconnection`], [`rdp::connection_request`], [`entry::carrier`] | a token or a [`ticket`] |
//! | does it hold? | [`gateway::session::authenticate`], [`token`] | verified [`Claims`](token::Claims) |
//! | may it? | [`gateway::session::authorize`], [`policy`] | a [`Permit`](policy::permit::Permit), the token reserved, the session [registered](gateway::live::registry) |
//! | where to? | [`gateway::session::connect`], [`gateway::upstream`] | a target, dialled within the [egress rules](policy::egress) |
//! | do both speak it? | [`gateway::session::open`], [`token::application_protocol`] | the first exchange done, the token's use on disk; what a client says late that may be RDP is judged then (`session::late`) |
//! | relay | [`relay`] | bytes both ways until the end, and one closing log line and record |
//!
//! Where a token asks for what only works inside the session (credentials for the target, a credential for the client's
//! own leg, a pinned certificate), the last two rows are others:
//!
//! | step | file | what it makes of the one before |
//! |---|---|---|
//! | secure both legs | [`gateway::session::inspect`], [`gateway::session::secure`], [`rdp::credssp`], [`gateway::trust::target_certificate`] | TLS and, where it was negotiated, CredSSP with the client, and only then with the target |
//! | past the stages | [`relay::inspected`], [`rdp::tracker`], [`stage`] | PDUs both ways, read by the [tracker](rdp::tracker::Tracker), judged by the stages, edited only where the legs differ |
//!
//! A client that speaks no RDP, or knows nothing of tokens, comes by WebSocket ([`gateway::api::forward`],
//! [`gateway::session::forward`]): its token is verified with its handshake, and the steps behind that are the same.
//!
//! A JET peer takes another way in ([`gateway::rendezvous`], [`gateway::api::jet`]): its packet or WebSocket handshake names a
//! candidate, and it waits or meets who waits there ([`gateway::meeting`], [`jet::rendezvous`]). From the first byte on, two peers that
//! have met are a session like any other: the connector is its client and the acceptor its target. An RDP client with a rendezvous
//! token meets its acceptor in the step that connects ([`gateway::session::meet_acceptor`]).
//!
//! A token may lead behind an agent ([`jet::agent`], [`peer::agent`]): an acceptor that stays connected by a signaling channel
//! ([`gateway::rendezvous::signaling`], [`store::agents`]). Then the gateway itself creates the association, offers it and connects
//! ([`gateway::session::meet_agent`]).
//!
//! Every step takes the one before it by value. A step that fails returns a [`Refusal`](gateway::refusal::Refusal), and
//! [`gateway::session::refuse`] tells the client in its own protocol.
//!
//! # Layers
//!
//! The **core** does no I/O, reads no clock and spawns nothing: bytes and `now` in, values out. Each part of it is a member of the
//! workspace (`src/token` is the package `jetway-token`), known here by its short name, which builds alone, as the fuzz targets do.
//! What it may depend on is in its manifest; what it may not call (files, sockets, threads, clocks) is in `src/clippy.toml`; that it
//! reaches no runtime through its dependencies, a test asks of Cargo (`it::layers`). The **shell** does the I/O; its parts are
//! members, too, but for [`cli`], which is the program. Shell uses core, never the other way round.
//!
//! | part | what | uses |
//! |---|---|---|
//! | [`base`] | limits, time, address groups, session ids | nothing |
//! | [`audit`] | records of decisions, their chain, its verification | base |
//! | [`token`] | from text to claims, or the rule that it breaks; keys; revocation; names of targets and agents | base |
//! | [`rdp`] | PDUs, CredSSP, the tracker of a session, channels | base |
//! | [`entry`] | what a client brings: first bytes, PROXY header, carriers, tickets, `.rdp` files | token |
//! | [`jet`] | packets, messages, candidates, the state of a rendezvous | token |
//! | [`policy`] | from claims to a permit or a denial; egress; work; shares | token |
//! | [`stage`] | what looks into inspected sessions; your own by [`gateway::live::stages`], as `tests/plugin` shows | rdp |
//! | [`metrics`] | what everybody counts, under one set of names: the one state of the process besides its log | nothing |
//! | [`io`] | what the system gives: clock, streams, WebSockets, files | jet, metrics |
//! | [`log`] | lines, their budgets, the thread that writes them | io |
//! | [`relay`] | bytes both ways | io, rdp |
//! | [`store`] | what outlives a connection | audit, io, entry, jet, policy, rdp |
//! | [`gateway`] | the server; its own page has the order of its parts | all above |
//! | [`peer`] | `jetway agent`, `jetway connect` | io, jet |
//! | [`demo`] | a target and a client to try it with | io, rdp, entry |
//! | [`cli`] | the commands | all above |
//!
//! What the tests of several members share (recorded sessions, certificates, sockets, processes that end with their value) is a member
//! for `[dev-dependencies]` alone, `tests/lab`; `tests/it/lab.rs` and `tests/peers/lab` have what stands on it: a gateway in the test's
//! own process, and real clients and targets around the real binary.
//!
//! No two files import each other.
//!
//! # What always holds
//!
//! 1. **Fail closed.** A token that demands what cannot be delivered is refused before the target hears of it. Today that is
//!    recording and filtering; and what needs the gateway inside the session, where the listener has no
//!    certificate. A PDU that cannot be read where a stage needs it ends the session; where nothing depends on it, it is recorded
//!    once and passes ([`rdp::channel`]).
//! 2. **Original bytes.** In an opaque session client and target exchange their own bytes past the Connection Request, from
//!    which the routing token is removed, and which the gateway makes for a client that begins with TLS ([`gateway::session::open`]): TLS
//!    and CredSSP run end to end. In an inspected one every PDU passes byte for byte
//!    but for the fields in which the legs differ ([`rdp::tracker`] names them).
//! 3. **One token, one live session.** Reserved from the moment of authorisation, on disk before the client hears from the
//!    target ([`store::usage`]). Revocation ends live sessions, too, and what an operator or a limit has ended is not opened again.
//! 4. **Bounded.** Whatever an unproven peer can make us hold or wait for is named in [`base::limits`] or in the
//!    configuration. What a proven peer can fill has a share for each token, each address and each API key ([`policy::shares`]), and a
//!    limit that is reached is said once a minute with who has reached it ([`io::reached`]). A place among the connections is held as long
//!    as the socket is ([`gateway::api::held`]); when those that have proved nothing are too many, the oldest of the address that has the
//!    most makes room ([`gateway::listener::admission`]). What both sides of an inspected session can make us remember has one budget
//!    ([`rdp::budget`]), however many channels and tables they use. Log lines have budgets by address and kind, and by session ([`log`],
//!    [`base::log_limit`]); what is missing is counted, and nobody who logs waits for who reads the log.
//! 5. **Explained.** Each refusal has a rule, a reason and a correlation id in the log, and the closest RDP failure code
//!    for the client ([`gateway::refusal`] has the table). A client that comes back without its token, as FreeRDP does, is
//!    told the first reason again ([`store::refusals`]).
//! 6. **Recorded.** Each decision, session and operator's action is a record of the audit ([`gateway::trail`], [`audit`]), in a chain
//!    that shows what was removed or changed; one thread writes it ([`store::audit`]). Where `audit.required` says so, no session opens
//!    whose record is not on disk.
//! 7. **No secret leaves.** Tokens, tickets and passwords are in no log line, no record, no error, no `Debug` output and no process
//!    list.
//! 8. Nothing makes a `Permit` but [`policy`]; nothing dials but [`gateway::upstream`], and [`peer`], which is not part of the gateway;
//!    nothing reads a clock but [`io::clock`].
//!
//! # Decisions a reader may wonder about
//!
//! - **A ticket is bound to the address that uses it first**, and can be shown again from there. It opens nothing that its
//!   token would not open, so it stays good for one session; and automatic retries and reconnects work with
//!   `loadbalanceinfo` as they do with `pcb` ([`store::tickets`]). It outlives a restart, for clients that carry nothing else; the
//!   store has it by its digest, and its token sealed with a key that is made of the ticket ([`entry::ticket`]).
//! - **The token counts as used when the target has answered**, not when it was shown: a target that is down, or that
//!   accepts connections and says nothing, costs nobody a token.
//! - **A token without `jti` is known by a digest** of what its signature covers, since anybody can turn one valid ECDSA
//!   signature into another, or encrypt a signed token anew ([`token::TokenId`]).
//! - **Both carriers at once**: the preconnection PDU wins. A second one that stands for another token is refused; a ticket
//!   that is no longer known contradicts nothing, as a reconnecting client shows it again.
//! - **This machine is no target**, by loopback or by an address of its interfaces, unless an egress rule has a CIDR of that very kind
//!   (for an interface, of that one address): tokens name hosts, and a gateway must not be a way to its own administration ports
//!   or to a cloud's metadata service.
//! - **A credential is shown to the host that was named.** Candidates are the word of somebody else, so a relay on another host is left
//!   out by agents and by `jetway connect` ([`peer::Site::relay`]), and the gateway passes on none that is not its own.
//! - **Loopback alone may use HTTP without TLS** by default, since requests carry tokens.
//! - **Two UUIDs are no secret**: an association that a token has created demands a token of its peers. One that an operator has
//!   created does not, unless they say so, since existing peers have no way to show one.
//! - **The first bytes of a rendezvous wait for a quarter of a second** where the peer that is to get them may not have read its
//!   response yet: existing clients read it by one call and lose what comes with it.
//! - **A session by rendezvous may come again** within its token's reconnect window, as a forward one may: its association goes back to
//!   where it was gathered, for whoever may be a peer of it ([`jet::rendezvous`]).
//! - **Gathering is idempotent**: both peers may ask, and get the same candidates.
//! - **What an agent signs is no token**: its `typ` is another, its key is known for nothing else, and it opens one candidate of an
//!   association that this agent was offered ([`token::statement`]).
//! - **Who is to prove themselves does so by NLA or not at all** (`prx_usr`): asked of what the client offers, before its token is
//!   taken and anybody is contacted ([`policy::can_prove`]). A client that begins with TLS has offered nothing. Wrong passwords are
//!   counted by token, one attempt at a time, until they spend it; a right one does not clear the count, since who shares a
//!   token with a guesser would clear it for them ([`store::usage`]).
//! - **Credentials go to nobody for whom nothing vouches** ([`policy`]). The bearer of a token could accept in its association, too,
//!   and show a certificate of their own; so an acceptor is logged on to where the token pins the certificate and the acceptor has
//!   shown a token of the association, or where it is the agent that the token names and the target's certificate is verified. What
//!   is remembered of a target behind an agent is remembered under the agent's name ([`token::target_name`]).
//! - **A target is remembered when it has proved itself** by CredSSP. Who selects TLS alone proves nothing and would be shown the
//!   password in Client Info, so it needs a pin, an authority, or the administrator's word for that very target
//!   (`target.tls_only`). What sessions without credentials see first is remembered as unproven: it holds among them, gets no
//!   credentials, and gives way to the first proven certificate ([`gateway::trust::target_certificate`]).
//! - **An association leads to one target**: an agent that has accepted for one offer is not met as the target of another
//!   ([`store::agents`]).
//! - **What `jetway config check` finds good, `jetway serve` starts with**: both read, and try what will be written and listened on,
//!   by the same code and as the user who runs them ([`gateway::build::Prepared`]). Nothing but the store's lock and the ports is left to
//!   the start. A configuration with errors is looked at without the values at fault, so that all are told at once
//!   ([`gateway::config::Reading`]).
//! - **An agent that its gateway will never have as it is ends**, with the reason; one whose gateway is gone comes back
//!   ([`peer::agent::Hopeless`]).
//! - **The strictest token of a rendezvous holds**: what the token of the acceptor, or the one that created the association, demands
//!   is demanded of the session ([`policy::tighten`]).
//! - **An agent dials its target before it accepts**, so that a target that is down is told to the client and not shown as
//!   a session that ends; but where the client has yet to prove itself, with its first bytes ([`jet::agent::Dial`]).
//! - **A session ends only at what its client would not go on with, either.** What FreeRDP 2 and 3 take from a target without a gateway
//!   they take through it; `peers::differs` plays a table of odd targets both ways. The exceptions protect something: a message of
//!   the clipboard, of devices or of dynamic channels whose length is not the one that was announced (receivers differ in where it
//!   ends), a channel id that a client takes under a second name, and what is above a limit ([`base::limits`]). What those clients refuse
//!   themselves may be refused here as well: empty slow-path updates, updates that are cut off, bytes behind a share PDU or an MCS
//!   PDU, Save Session Info and Set Error Info that are cut off.
//! - **RDP has no half-close**: who ends has gone, so the session ends within seconds, while other protocols may finish what they say
//!   ([`relay::AfterEnd`]). The end of a client may be in its own system behind full buffers; where the target takes them slowly, bytes
//!   of it are read ahead until the end shows, within a bound for all sessions together. Without room for that, a target that takes next
//!   to nothing and says nothing for two minutes ends the session ([`relay::gone`]).
//! - **A session is accounted for before its client has read the last of it**: what remains is a connection to a client on a slow line,
//!   for a minute ([`relay::Parting`]). What a limit has ended is spent on disk before either side can see the end.
//! - **A time limit is that of all sessions of a token** ([`store::usage`]): else to reconnect would begin it anew. In a rendezvous it is
//!   that of all sessions in which the token of the acceptor took part as well, whoever has connected.
//! - **A token that was forgotten is refused as long as a clock that was set back makes it valid again** ([`store::usage`]).
//! - **What is counted is one state of the process** ([`metrics`]), as its log is: it happens in ten layers, and no layer's work depends on
//!   it. Labels are names from the code: nobody outside makes more of them, and none tells of a user, a target or a token.
//! - **A gateway that is not ready tries its store again by itself** ([`gateway::upkeep`]): balancers send it nobody who would.
//! - **The chain of the audit goes on behind what is missing** ([`store::audit`]): begun anew, a gap would look like a first day.
//! - **Bulk is spliced, small talk is copied**: see [`relay`] for the figures behind that.
//! - **The reader of an inspected session sleeps through the middle of a large message** ([`io::low_water`]): its receiver can use nothing
//!   of it before its end, and to wake for every part was a fifth of all CPU.
//!
//! # JET requirements and their tests
//!
//! `grep -rn J-JWT-1 src tests` finds every proof; these are the ones to read first. `it::` is `tests/it`, `peers::` is
//! `tests/peers` (real FreeRDP, xrdp and freerdp-shadow); `token::`, `jet::` and the like are unit tests of those members
//! (`cargo nextest run -p jetway-token`).
//!
//! | id | what | proof |
//! |---|---|---|
//! | J-JWT-1 | validity: `nbf` over `iat`, `exp`, leeway, two minutes by default, a maximum | `token::validity::tests`, `it::refusals::a_bad_token_is_refused_with_its_rule_and_never_reaches_the_target`, `peers::refuses` |
//! | J-JWT-2 | algorithms follow from the key | `token::tests::every_signature_algorithm_verifies_with_its_own_key_only`, `token::tests::a_token_signed_with_the_text_of_the_public_key_is_refused` |
//! | J-JWT-3 | `none` only by a development switch | `token::tests::alg_none_is_refused_but_for_the_development_switch` |
//! | J-JWT-4 | JWE alone and nested; a signature inside by default | `token::tests::encryption_alone_is_accepted_only_as_configured`, `token::tests::a_stranger_with_the_public_key_makes_no_token`, `peers::opens` |
//! | J-JWT-5 | `dst_usr`, `dst_pwd` only in an encrypted token | `token::tests::secrets_make_a_token_invalid_unless_it_was_encrypted` |
//! | J-CM-1 | `jet_cm` | `token::claims::tests::jet_cm_is_rdv_when_absent_and_nothing_but_rdv_or_fwd`, `it::rendezvous::associations_are_created_read_and_deleted_by_who_may` |
//! | J-CT-1 | `jet_ct` | `token::claims::tests::jet_ct_is_keep_when_absent_and_nothing_but_keep_or_close`, `it::rendezvous::with_jet_ct_close_connecting_selects` |
//! | J-AP-1 | `jet_ap` is enforced from the first byte | `it::enforcement`, `it::rendezvous::jet_ap_is_enforced_in_a_rendezvous`, `peers::protocols` |
//! | J-REC-1 | `jet_rec` true: refused while there is no recorder | `it::demands::recording_and_filtering_are_refused_with_their_reason`, `it::behind::recording_and_filtering_are_refused_to_either_peer_of_a_rendezvous_in_every_way_in` |
//! | J-FLT-1 | `jetflt`, `jet_flt` true: refused while there is no filter | the same |
//! | J-DST-1 | `dst_hst` | `token::target::tests`, `token::claims::tests::a_destination_is_required_with_fwd_and_refused_with_rdv`, `it::onward::ipv6_targets_and_names_are_reached` |
//! | J-DST-2 | the gateway logs on with them; they never reach the client or a log | `peers::injects`, `peers::legs`, `peers::behind`, `it::behind`, `it::demands::credentials_are_refused_where_there_is_no_certificate_to_inject_them_behind` |
//! | J-DST-2 | `prx_usr`, `prx_pwd`: the client proves itself first, and cannot guess | `it::proof`, `peers::injects` |
//! | J-RDP-1 | token in the preconnection PDU | `it::forward`, `peers::opens` |
//! | J-RDP-2 | token or ticket in the routing token | `it::forward::a_ticket_in_the_routing_token_opens_a_session`, `it::forward::a_token_too_long_for_the_length_indicator_still_works_as_a_routing_token`, `peers::opens` |
//! | J-RDP-3 | a rendezvous token in the PDU | `it::rendezvous::an_rdp_client_with_a_rendezvous_token_meets_the_acceptor` |
//! | J-PKT-1, J-PKT-2 | `JET_PACKET`, every mask | `jet::packet::tests`, `it::rendezvous::responses_are_masked_at_random_and_never_with_zero` |
//! | J-PKT-3 | bad packets; packets in pieces; bytes behind them | `jet::packet::tests`, `it::rendezvous::what_is_no_packet_is_closed_with_a_line`, `it::rendezvous::bytes_behind_the_request_are_delivered_and_single_bytes_make_a_request` |
//! | J-API-1, J-API-3 | associations, and who may | `it::rendezvous::associations_are_created_read_and_deleted_by_who_may`, `it::rendezvous::authentication_may_be_switched_off_and_says_so` |
//! | J-API-2 | gathering | `it::rendezvous::gathering_names_each_way_in_once`, `it::rendezvous::transports_that_the_gateway_does_not_have_are_not_gathered` |
//! | J-API-4 | expiry | `jet::rendezvous::tests::what_is_unused_expires_and_a_session_does_not`, `it::rendezvous::what_nobody_uses_is_forgotten_and_its_peers_are_closed`, `it::rendezvous::a_chosen_candidate_without_a_byte_is_forgotten_and_one_with_a_byte_is_not` |
//! | J-URL-1 | candidate URLs | `jet::candidate::tests` |
//! | J-MSG-1, J-MSG-2 | offer, answer, complete | `jet::message::tests`, `jet::agent::tests`, `it::agent` |
//! | J-SEQ-1 | the server accepts on the relay candidates and answers with the real ones | `it::agent::an_rdp_client_reaches_a_target_behind_an_agent`, `peers::agent`, `jet::message::tests::the_instance_that_holds_the_association_takes_the_place_of_the_balancer` |
//! | J-SEQ-2 | host candidates, only where they are asked for | `it::agent::an_agent_tells_its_address_only_if_told_to_and_serves_there_who_knows_the_ids`, `peer::host::tests` |
//! | J-SEQ-3 | the client tests in parallel, and one candidate is selected | `it::agent::a_client_offers_tests_all_candidates_at_once_and_chooses_one`, `it::rendezvous::the_first_bytes_select_a_candidate_and_close_the_others`, `it::rendezvous::the_clients_word_selects_a_candidate` |
//! | J-BIN-1, J-BIN-2 | accept and connect, over TCP and TLS | `it::matrix`, `it::rendezvous::what_a_server_says_first_never_comes_with_the_response`, `peers::meets` |
//! | J-BIN-3 | test | `it::rendezvous::unknown_ids_are_not_found_and_known_ones_test_well` |
//! | J-BIN-4 | TLS between the ends | `it::matrix::tls_between_the_ends_passes_every_pair`, `peers::meets::s_client_and_s_server_speak_tls_end_to_end_through_a_tcp_candidate` |
//! | J-CM-1 | `fwd` by WebSocket, with the rules of forward mode | `it::forward_websocket`, `peers::protocols` |
//! | J-WS-1, J-WS-2 | WebSocket peers, with peers of every transport | `it::matrix`, `it::rendezvous`, `websocket::tests`, `peers::pages`, `peers::meets` |
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/
//! [MS-RDPEPS]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpeps/

// Core: bytes and `now` in, values out.
pub use jetway_audit as audit;
pub use jetway_base as base;
pub use jetway_entry as entry;
pub use jetway_jet as jet;
pub use jetway_policy as policy;
pub use jetway_rdp as rdp;
pub use jetway_stage as stage;
pub use jetway_token as token;

// Shell: may do I/O.
pub mod cli;
#[cfg(feature = "demo")]
pub use jetway_demo as demo;
pub use jetway_gateway as gateway;
pub use jetway_io as io;
pub use jetway_log as log;
pub use jetway_metrics as metrics;
pub use jetway_peer as peer;
pub use jetway_relay as relay;
pub use jetway_store as store;

// Short names.
pub use crate::base::{address, escape, limits, log_limit, time};
pub use crate::entry::{carrier, preamble, proxy_protocol, rdp_file, ticket};
pub use crate::gateway::trust::{keyring, target_certificate, tls};
pub use crate::gateway::{api, config, listener, refusal, session};
pub use crate::io::websocket::frames;
pub use crate::io::{
    buffers, clock, file_stamp, low_water, over_tcp, private_file, read_ahead, stream, websocket,
};
pub use crate::policy::shares;
pub use crate::token::{application_protocol, target_name};
