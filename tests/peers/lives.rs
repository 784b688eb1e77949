//! A live session: no second one beside it or after it with the same token, and how it ends.

use anyhow::{Result, ensure};
use jetway_lab::wait::{PATIENCE, until};
use serde_json::json;

use crate::lab::forge;
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::shadow::{Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace::{self, Workspace};
use crate::refuses::{NOT_ALLOWED, Refused, UNAUTHENTICATED};

#[test]
fn freerdp2_token_opens_one_session_only() -> Result<()> {
    token_opens_one_session_only(Version::Two)
}

#[test]
fn freerdp3_token_opens_one_session_only() -> Result<()> {
    token_opens_one_session_only(Version::Three)
}

fn token_opens_one_session_only(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start(workspace)?;
        let mut live = Live::open(workspace, &gateway, version, target.place())?;
        let again = |rule| Refused {
            rule,
            told: UNAUTHENTICATED,
            version,
            arguments: vec![live.pcb.clone()],
        };
        let (while_live, after_end) = (again("in-use"), again("replayed"));

        while_live.by(workspace, &gateway)?;
        live.client.type_until_it_arrives(target.place())?;

        live.client.end();
        gateway.wait_for(CLOSED, 1)?;
        after_end.by(workspace, &gateway)
    })
}

#[test]
fn freerdp2_ticket_opens_one_session_only() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start(workspace)?;
        let token = forge::sign_es256(
            &gateway.keys().signing,
            &forge::good_claims(&place.address())?,
        )?;
        let ticket = format!("/load-balance-info:{}", gateway.ticket(&token)?);
        let arguments = [format!("/v:{}", gateway.address()), ticket.clone()];
        let mut client = FreeRdp::start(workspace, "live", Version::Two, &arguments, place)?;
        client.wait_for_desktop(place)?;
        Refused {
            rule: "in-use",
            told: UNAUTHENTICATED,
            version: Version::Two,
            arguments: vec![ticket],
        }
        .by(workspace, &gateway)?;
        client.type_until_it_arrives(place)
    })
}

#[test]
fn freerdp2_session_ends_when_its_token_is_revoked() -> Result<()> {
    session_ends_when_its_token_is_revoked(Version::Two)
}

#[test]
fn freerdp3_session_ends_when_its_token_is_revoked() -> Result<()> {
    session_ends_when_its_token_is_revoked(Version::Three)
}

fn session_ends_when_its_token_is_revoked(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start(workspace)?;
        let mut live = Live::open(workspace, &gateway, version, target.place())?;
        gateway.revoke(&["another token"])?;
        live.client.type_until_it_arrives(target.place())?;

        gateway.revoke(&["another token", &live.id])?;
        let code = live.client.exit_code()?;
        ensure!(code != 0, "the client must know that it was cut off");
        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(closed.len() == 1, "one closing line: {closed:?}");
        let reason = closed[0].field("reason").unwrap_or_default();
        ensure!(reason.contains("revoked"), "{:?}", closed[0]);
        ensure!(
            closed[0].field("token").as_deref() == Some(&live.id),
            "{:?}",
            closed[0]
        );

        Refused {
            rule: "revoked",
            told: UNAUTHENTICATED,
            version,
            arguments: vec![live.pcb],
        }
        .by(workspace, &gateway)
    })
}

#[test]
fn freerdp2_session_ends_when_its_target_dies() -> Result<()> {
    session_ends_when_its_target_dies(Version::Two)
}

#[test]
fn freerdp3_session_ends_when_its_target_dies() -> Result<()> {
    session_ends_when_its_target_dies(Version::Three)
}

fn session_ends_when_its_target_dies(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let mut target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start(workspace)?;
        let place = target.place().clone();
        let mut live = Live::open(workspace, &gateway, version, &place)?;
        live.client.expect_alive()?;
        target.kill();
        live.client.exit_code()?;
        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(closed.len() == 1, "one closing line: {closed:?}");
        ensure!(
            closed[0]
                .field("target")
                .is_some_and(|at| at.contains(&place.address()))
        );
        Ok(())
    })
}

#[test]
fn a_session_lives_on_beside_refused_ones_and_ends_with_the_gateway() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start(workspace)?;
        let mut live = Live::open(workspace, &gateway, Version::Two, target.place())?;
        for _ in 0..3 {
            let mut claims = forge::good_claims(&target.place().address())?;
            claims.insert("jet_rec".to_owned(), json!(true));
            let token = forge::sign_es256(&gateway.keys().signing, &claims)?;
            let arguments = vec![format!("/pcb:{token}")];
            Refused {
                rule: "recording",
                told: NOT_ALLOWED,
                version: Version::Three,
                arguments,
            }
            .by(workspace, &gateway)?;
        }
        live.client.type_until_it_arrives(target.place())?;
        drop(gateway);
        live.client.exit_code().map(drop)
    })
}

/// One of them is inspected and has nothing but a ticket, the other is opaque and has its token.
#[test]
fn freerdp3_comes_back_by_itself_after_a_restart_of_the_gateway() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let mut gateway = Gateway::start_inside_to_restart(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let inspected = gateway.token_with(&place.address(), &grant)?;
        let carriers = [
            format!("/load-balance-info:{}", gateway.ticket(&inspected)?),
            format!(
                "/pcb:{}",
                gateway.token(&place.address(), Protection::Signed)?
            ),
        ];
        let mut clients = Vec::new();
        for (role, carrier) in ["inspected", "opaque"].into_iter().zip(carriers) {
            let arguments = [
                format!("/v:{}", gateway.address()),
                carrier,
                "+auto-reconnect".to_owned(),
            ];
            let mut client = FreeRdp::start(workspace, role, Version::Three, &arguments, place)?;
            client.wait_for_desktop(place)?;
            // Each has its pointer in the terminal from here on: where one of them comes back with it elsewhere, the desktop that
            // they share takes the keys of the other one elsewhere, too.
            client.type_until_it_arrives(place)?;
            clients.push(client);
        }
        gateway.restart(workspace)?;
        for line in gateway.wait_for(CLOSED, 2)? {
            let reason = line.field("reason");
            ensure!(
                reason.as_deref() == Some("the gateway is shutting down"),
                "{line:?}"
            );
        }
        until("both sessions are open again", PATIENCE, || {
            let live = gateway.live_sessions()?;
            let live = live.as_array().map(Vec::as_slice).unwrap_or_default();
            let relaying = live.iter().filter(|row| row["phase"] == "relaying");
            Ok((relaying.count() == 2).then_some(()))
        })?;
        for client in &mut clients {
            client.expect_alive()?;
            client.type_until_it_arrives(place)?;
        }
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}

/// A session that is up: the desktop is on the client's screen.
struct Live {
    client: FreeRdp,
    /// The option that carried the token.
    pcb: String,
    /// The token's `jti`.
    id: String,
}

impl Live {
    fn open(
        workspace: &Workspace,
        gateway: &Gateway,
        version: Version,
        place: &Place,
    ) -> Result<Self> {
        let claims = forge::good_claims(&place.address())?;
        let id = claims["jti"].as_str().unwrap_or_default().to_owned();
        let pcb = format!(
            "/pcb:{}",
            forge::sign_es256(&gateway.keys().signing, &claims)?
        );
        let arguments = [format!("/v:{}", gateway.address()), pcb.clone()];
        let mut client = FreeRdp::start(workspace, "live", version, &arguments, place)?;
        client.wait_for_desktop(place)?;
        Ok(Self { client, pcb, id })
    }
}
