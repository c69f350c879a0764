//! A container of an ordinary Kubernetes spec, asked from inside what it sees.

mod common;

use common::Rig;

#[test]
fn runs_a_command_and_tells_its_exit_code() {
    let outcome = Rig::new().sh(|_| (), "echo hello; exit 7");
    assert_eq!((outcome.out.as_str(), outcome.status), ("hello\n", 7));
}
