//! Redis, in a machine.

use anyhow::Result;

use super::unit::Server;
use crate::machine::Machine;

/// Starts Debian's Redis. The machine's tree must contain redis-server.
///
/// # Errors
/// Fails if Redis cannot be configured or does not start.
pub fn redis<'a>(machine: &'a Machine, password: &str) -> Result<Server<'a>> {
    let configuration = "/etc/redis/redis.conf";
    let text = machine.read(configuration)?;
    machine.ok(["systemctl", "stop", "redis-server"])?;
    machine.write(configuration, format!("{text}\nrequirepass {password}\n"))?;
    let server = Server::of(machine, "redis-server", 6379);
    server.start()?;
    Ok(server)
}
