//! The rows of the README's table of what Remmina and Guacamole show of what FreeRDP has names for.

use anyhow::{Context, Result, ensure};
use jetway_lab::wait::{PATIENCE, until};
use serde_json::{Value, json};

use crate::guacamole::Carrier;
use crate::injects::{WRONG_PASSWORD, stranger};
use crate::lab::forge;
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::guacd::{Guacamole, Guacd};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::port::Port;
use crate::lab::remmina::Remmina;
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace::{self, Workspace};
use crate::told::halfway;

/// A row of the table.
#[derive(Debug)]
struct Row {
    remmina: Shown,
    /// The number by which Guacamole's page has a sentence: where the client negotiates, and where it begins with TLS.
    guacamole: [u16; 2],
}

/// What Remmina's user sees.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// What its window says.
    Text(String),
    /// Its window is gone.
    Closes,
    /// It comes again by itself.
    ComesBack,
}

/// The row of what FreeRDP calls `name`.
fn row(name: &str) -> Result<Row> {
    let readme = include_str!("../../README.md");
    let name = format!("`{name}`");
    let cells = readme.lines().find_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", called, remmina, guacamole, ""] if called.contains(&name) => {
                Some((remmina, guacamole))
            }
            _ => None,
        }
    });
    let (remmina, guacamole) =
        cells.with_context(|| format!("the README has no row for {name}"))?;
    let quoted = |cell: &'static str| cell.split('`').skip(1).step_by(2);
    let mut numbers = quoted(guacamole).map(|number| {
        let digits = number.strip_prefix("0x").context(number)?;
        anyhow::Ok(u16::from_str_radix(digits, 16)?)
    });
    let first = numbers.next().context("a number")??;
    let second = numbers.next().transpose()?.unwrap_or(first);
    let remmina = match quoted(remmina).next() {
        // As every gateway of the lab is called.
        Some(text) => Shown::Text(text.replace("HOST", "127.0.0.1")),
        None if remmina.starts_with("comes back") => Shown::ComesBack,
        None => Shown::Closes,
    };
    Ok(Row {
        remmina,
        guacamole: [first, second],
    })
}

/// One of the two, and a session of it.
enum Client {
    Guacamole(Guacd),
    Remmina,
}

enum Session {
    Guacamole(Carrier, Guacamole),
    Remmina(Box<Remmina>),
}

impl Client {
    /// Each way in which it can carry a token.
    fn carriers(&self) -> &'static [Carrier] {
        match self {
            Self::Guacamole(_) => &[Carrier::Ticket, Carrier::Token],
            Self::Remmina => &[Carrier::Ticket],
        }
    }

    fn open(
        &self,
        workspace: &Workspace,
        role: &str,
        address: &str,
        user: &Place,
        carrier: Carrier,
        [token, ticket]: [&str; 2],
    ) -> Result<Session> {
        Ok(match self {
            Self::Guacamole(guacd) => {
                let parameters = carrier.parameters(token, ticket);
                Session::Guacamole(carrier, guacd.connect(address, user, &parameters)?)
            }
            Self::Remmina => {
                let client = Remmina::start(workspace, role, address, ticket, None)?;
                Session::Remmina(Box::new(client))
            }
        })
    }
}

impl Session {
    fn wait_for_desktop(&mut self, place: &Place) -> Result<()> {
        match self {
            Self::Guacamole(_, client) => client.wait_for_desktop(place),
            Self::Remmina(client) => client.wait_for_desktop(place),
        }
        .map(drop)
    }

    /// Its user is shown what the README says of `name`.
    fn shows(&mut self, gateway: &Gateway, name: &str) -> Result<()> {
        let row = row(name)?;
        match self {
            Self::Guacamole(carrier, client) => {
                let [negotiated, direct] = row.guacamole;
                let expected = match carrier {
                    Carrier::Ticket => negotiated,
                    Carrier::Token => direct,
                };
                let (number, text) = client.error()?;
                ensure!(number == expected, "{name}: 0x{number:X} {text}");
            }
            Self::Remmina(client) => match row.remmina {
                Shown::Text(text) => until(&format!("{name}: {text}"), PATIENCE, || {
                    client.expect_alive()?;
                    // At first there is nothing to be read, and nobody to ask.
                    let shown = client.shown().unwrap_or_default();
                    Ok(shown.lines().any(|line| line == text).then_some(()))
                })?,
                Shown::Closes => {
                    let ended = client.process_mut().wait(PATIENCE)?;
                    ensure!(ended.success(), "{name}: {ended}");
                }
                Shown::ComesBack => {
                    let refused = gateway.wait_for(REFUSED, 1)?;
                    let rule = refused[0].field("rule");
                    ensure!(rule.as_deref() == Some("replayed"), "{refused:?}");
                    client.expect_alive()?;
                }
            },
        }
        Ok(())
    }
}

#[test]
fn guacd_shows_what_the_readme_says_where_no_session_is_had() -> Result<()> {
    workspace::run(|workspace| {
        no_session_is_had(workspace, &Client::Guacamole(Guacd::start(workspace)?))
    })
}

#[test]
fn remmina_shows_what_the_readme_says_where_no_session_is_had() -> Result<()> {
    workspace::run(|workspace| no_session_is_had(workspace, &Client::Remmina))
}

fn no_session_is_had(workspace: &Workspace, client: &Client) -> Result<()> {
    let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
    let place = target.place();
    let gateway = Gateway::start_inside(workspace, "first-use")?;
    let nobody = Port::free()?;
    let forged = |name: &str, value: Value| {
        let mut claims = forge::good_claims(&place.address())?;
        claims.insert(name.to_owned(), value);
        forge::sign_es256(&gateway.keys().signing, &claims)
    };
    let other = "5a".repeat(32);
    let logon = Grant::logon(&place.user, &place.password);
    let gone = halfway(place)?.address();
    let token_that_shows = |name: &str| -> Result<Option<String>> {
        let token = match name {
            "HYBRID_REQUIRED_BY_SERVER" => return Ok(None),
            "SSL_NOT_ALLOWED_BY_SERVER" => forged("jet_rec", json!(true)),
            "SSL_CERT_NOT_ON_SERVER" => {
                let down = format!("127.0.0.1:{}", nobody.number());
                forged("dst_hst", json!(down))
            }
            "INCONSISTENT_FLAGS" => forged("jet_ap", json!("ssh")),
            "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED" => {
                let wrong = Grant::logon(&place.user, WRONG_PASSWORD);
                gateway.token_with(&place.address(), &wrong)
            }
            "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS" => {
                let certificate = Some(other.as_str());
                let pinned = Grant {
                    certificate,
                    ..logon
                };
                gateway.token_with(&place.address(), &pinned)
            }
            _ => gateway.token_with(&gone, &logon),
        };
        token.map(Some)
    };
    let user = stranger(place);
    for &carrier in client.carriers() {
        for name in NO_SESSION {
            // The gateway gives no ticket for a token that demands what it cannot do.
            if name == "SSL_NOT_ALLOWED_BY_SERVER" && carrier == Carrier::Ticket {
                continue;
            }
            let (token, ticket) = match (token_that_shows(name)?, carrier) {
                (Some(token), Carrier::Ticket) => (token.clone(), gateway.ticket(&token)?),
                (Some(token), Carrier::Token) => (token, String::new()),
                (None, _) => ("not-a-token".to_owned(), UNKNOWN_TICKET.to_owned()),
            };
            let role = format!("{name}-{carrier:?}").to_lowercase();
            let (address, carried) = (gateway.address(), [token.as_str(), &ticket]);
            let session = client.open(workspace, &role, &address, &user, carrier, carried);
            session?.shows(&gateway, name)?;
        }
    }
    ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
    Ok(())
}

const NO_SESSION: [&str; 7] = [
    "HYBRID_REQUIRED_BY_SERVER",
    "SSL_NOT_ALLOWED_BY_SERVER",
    "SSL_CERT_NOT_ON_SERVER",
    "INCONSISTENT_FLAGS",
    "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED",
    "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS",
    "ERRINFO_CB_DESTINATION_NOT_FOUND",
];
const UNKNOWN_TICKET: &str = "jt-BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Operator,
    TimeLimit,
    Silence,
    TargetDies,
    LinkIsCut,
}

macro_rules! ends {
    ($($guacd:ident $remmina:ident: $end:ident, $name:expr;)*) => {$(
        #[test]
        fn $guacd() -> Result<()> {
            workspace::run(|workspace| {
                let client = Client::Guacamole(Guacd::start(workspace)?);
                a_session_ends(workspace, &client, End::$end, $name)
            })
        }
        #[test]
        fn $remmina() -> Result<()> {
            workspace::run(|workspace| {
                a_session_ends(workspace, &Client::Remmina, End::$end, $name)
            })
        }
    )*};
}

ends! {
    guacd_shows_what_the_readme_says_of_an_operators_end
    remmina_shows_what_the_readme_says_of_an_operators_end:
        Operator, "ERRINFO_RPC_INITIATED_DISCONNECT";
    guacd_shows_what_the_readme_says_of_a_time_limit
    remmina_shows_what_the_readme_says_of_a_time_limit:
        TimeLimit, "ERRINFO_LOGON_TIMEOUT";
    guacd_shows_what_the_readme_says_of_silence
    remmina_shows_what_the_readme_says_of_silence:
        Silence, "ERRINFO_IDLE_TIMEOUT";
    guacd_shows_what_the_readme_says_of_a_target_that_dies
    remmina_shows_what_the_readme_says_of_a_target_that_dies:
        TargetDies, "ERRCONNECT_CONNECT_TRANSPORT_FAILED";
    guacd_shows_what_the_readme_says_of_a_link_that_is_cut
    remmina_shows_what_the_readme_says_of_a_link_that_is_cut:
        LinkIsCut, "ERRCONNECT_CONNECT_TRANSPORT_FAILED";
}

fn a_session_ends(workspace: &Workspace, client: &Client, end: End, name: &str) -> Result<()> {
    let program = match end {
        // That of FreeRDP 3 is never silent.
        End::Silence => Program::Two,
        // Of that of FreeRDP 2 guacd often shows nothing, directly as well.
        End::Operator | End::TimeLimit | End::TargetDies | End::LinkIsCut => Program::Three,
    };
    let mut target = Shadow::start_program(workspace, program, Security::Nla)?;
    let place = target.place().clone();
    let limit = match end {
        End::TimeLimit => format!("[session]\ntime_limit_s = {LIMIT_S}\n"),
        End::Silence => format!("[session]\nidle_timeout_s = {SILENCE_S}\n"),
        End::Operator | End::TargetDies | End::LinkIsCut => String::new(),
    };
    let gateway = Gateway::start_inside_with(workspace, "first-use", &limit)?;
    let link = Link::start(&gateway.address())?;
    let grant = Grant::logon(&place.user, &place.password);
    let token = gateway.token_with(&place.address(), &grant)?;
    let ticket = gateway.ticket(&token)?;
    let (address, user) = (link.address(), stranger(&place));
    let carried = [token.as_str(), &ticket];
    let carrier = Carrier::Ticket;
    let mut session = client.open(workspace, "client", address, &user, carrier, carried)?;
    // A limit's time runs whether or not anybody has seen the desktop.
    if !matches!(end, End::TimeLimit | End::Silence) {
        session.wait_for_desktop(&place)?;
    }
    match end {
        End::Operator => gateway.end_session()?,
        End::TargetDies => target.kill(),
        End::LinkIsCut => link.cut(),
        End::TimeLimit | End::Silence => {}
    }
    session.shows(&gateway, name)?;
    gateway.wait_for(CLOSED, 1).map(drop)
}

/// Long enough for a client to be there on a busy machine.
const LIMIT_S: u32 = 12;
const SILENCE_S: u32 = 8;
