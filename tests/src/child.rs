//! Processes that end with the tests.

use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

/// Starts a process from a thread that lives as long as this process: the kernel signals a child when the thread dies
/// that started it.
pub(crate) fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<Child>);
    static NURSERY: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, born) in orders {
                let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
                let _ = born.send(child);
            }
        });
        Mutex::new(sender)
    });
    let (born, child) = mpsc::channel();
    let order = nursery.lock().unwrap_or_else(PoisonError::into_inner).send((command, born));
    order.expect("the thread takes orders");
    child.recv().expect("the process starts")
}

/// A group of processes by the id of its leader; dropping it kills the group.
pub struct ProcessGroup(pub u32);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0)]).status();
    }
}
