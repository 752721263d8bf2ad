//! One guest: QEMU as a child process, its agent, its QMP socket and its console.

use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hypervisor::{Destination, Qmp, Source};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, Output};
use crate::image::Image;

/// A boot takes 7 s on an idle machine; a loaded one may take much longer.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
const COMMAND_PATIENCE: Duration = Duration::from_secs(120);
const QMP_PATIENCE: Duration = Duration::from_secs(30);
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);
/// A second QMP socket in the guest's folder, to which one connects.
const MOVER: &str = "mover";
/// Lines of the console that an error shows.
const CONSOLE_TAIL_LINES: usize = 25;

/// What a guest is made of, before it is started.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    memory_mib: u32,
    cpus: u32,
    devices: Vec<Value>,
    arguments: Vec<String>,
    kernel: Option<PathBuf>,
    kernel_arguments: String,
}

impl Default for VmBuilder {
    fn default() -> Self {
        VmBuilder {
            memory_mib: 768,
            cpus: 2,
            devices: Vec::new(),
            arguments: Vec::new(),
            kernel: None,
            kernel_arguments: String::new(),
        }
    }
}

impl VmBuilder {
    /// The guest's memory, shared with vfio-user servers by memfd.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// The guest's processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// A device served by vfio-user at `socket`, behind a hot-plug port of its own; `id` is for [`Vm::unplug`].
    #[must_use]
    pub fn vfio_user(self, id: &str, socket: &Path) -> Self {
        self.device(vfio_user_device(id, socket))
    }

    /// A virtio-blk disk served by vhost-user at `socket`, with a queue a processor.
    #[must_use]
    pub fn vhost_user(self, id: &str, socket: &Path) -> Self {
        let chardev = format!("socket,id={id}-socket,path={}", socket.display());
        let device = json!({ "driver": "vhost-user-blk-pci", "id": id, "chardev": format!("{id}-socket") });
        self.arguments(["-chardev", &chardev]).device(device)
    }

    /// QEMU's own emulated NVMe drive on a raw file, opened as Godwit would: past the page cache.
    #[must_use]
    pub fn emulated_nvme(self, id: &str, file: &Path) -> Self {
        let drive = format!(
            "id={id}-drive,file={},format=raw,if=none,cache=none,aio=io_uring,discard=unmap,file.locking=off",
            file.display()
        );
        let device = json!({ "driver": "nvme", "id": id, "serial": id, "drive": format!("{id}-drive"), "max_ioqpairs": 16 });
        self.arguments(["-drive", &drive]).device(device)
    }

    /// Any device, as QEMU's `-device` takes it in JSON, behind a hot-plug port of its own.
    #[must_use]
    pub fn device(mut self, device: Value) -> Self {
        self.devices.push(device);
        self
    }

    /// Any arguments of QEMU.
    #[must_use]
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Another kernel than the image's. It must fit the image's modules.
    #[must_use]
    pub fn kernel(mut self, kernel: &Path) -> Self {
        self.kernel = Some(kernel.to_owned());
        self
    }

    /// More words on the kernel's command line.
    #[must_use]
    pub fn kernel_arguments(mut self, words: &str) -> Self {
        self.kernel_arguments.push(' ');
        self.kernel_arguments.push_str(words);
        self
    }

    /// The guest's programs are busybox, fio and cmp alone, in its memory: QEMU migrates no guest that has a folder of the host mounted.
    #[must_use]
    pub fn root_in_memory(self) -> Self {
        self.kernel_arguments("godwit.root=memory")
    }

    /// Starts QEMU and waits until the guest's agent answers.
    pub fn boot(self, image: &Image) -> Result<Vm> {
        let mut vm = self.start(image)?;
        vm.wait_ready()?;
        Ok(vm)
    }

    /// Starts QEMU for a guest that comes from another (`migrate-incoming`), and that runs only when it is told to (`cont`).
    pub fn await_migration(self, image: &Image) -> Result<Vm> {
        self.arguments(["-S", "-incoming", "defer"]).start(image)
    }

    /// Starts QEMU, and waits for nothing but its sockets.
    pub fn start(self, image: &Image) -> Result<Vm> {
        let folder = TempDir::with_prefix("vm-").context("create a folder for the guest")?;
        let agent_socket = listen(&folder.path().join("agent"))?;
        let qmp_socket = listen(&folder.path().join("qmp"))?;
        let errors_path = folder.path().join("qemu.log");
        let errors = File::create(&errors_path).context("create QEMU's log")?;
        let mut command = self.command(image, folder.path());
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let mut qemu = Qemu(command.spawn().with_context(|| format!("start {command:?}"))?);
        let connect = |qemu: &mut Qemu| -> Result<(UnixStream, Qmp)> {
            let agent = accept(&agent_socket, qemu)?;
            // It may end for its devices' sake after it has connected.
            let qmp = Qmp::over(accept(&qmp_socket, qemu)?, &folder.path().join("qmp"), QMP_PATIENCE)?;
            Ok((agent, qmp))
        };
        let (agent, qmp) = connect(&mut qemu).with_context(|| {
            format!("QEMU says: {}", fs::read_to_string(&errors_path).unwrap_or_default().trim())
        })?;
        Ok(Vm { qemu, agent: Agent::new(agent), qmp, earlier_log: String::new(), folder })
    }

    fn command(&self, image: &Image, folder: &Path) -> Command {
        let (mut qemu, root) = image.qemu();
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(root.join(firmware));
        }
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib);
        let socket = |id: &str| format!("socket,id={id},path={}", folder.join(id).display());
        let root = format!(
            "local,id=root,path={},security_model=none,readonly=on,multidevs=remap",
            image.root().display()
        );
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35,memory-backend=memory",
        ]);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", &self.cpus.to_string()]);
        qemu.args(["-m", &format!("{}M", self.memory_mib), "-object", &memory]);
        qemu.args(["-serial", &format!("file:{}", folder.join("console").display())]);
        qemu.args(["-chardev", &socket("agent"), "-device", "virtio-serial-pci"]);
        qemu.args(["-device", "virtserialport,chardev=agent,name=agent"]);
        qemu.args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"]);
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", folder.join(MOVER).display())]);
        qemu.args(["-fsdev", &root, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root9p"]);
        for (slot, device) in (1..).zip(&self.devices) {
            let mut device = device.clone();
            device["bus"] = json!(format!("port{slot}"));
            let port = format!("pcie-root-port,id=port{slot},chassis={slot},slot={slot}");
            qemu.args(["-device", &port, "-device", &device.to_string()]);
        }
        qemu.args(&self.arguments);
        qemu.arg("-kernel").arg(self.kernel.clone().unwrap_or_else(|| image.kernel()));
        qemu.arg("-initrd").arg(image.initramfs());
        // iomem=relaxed: nvme-cli maps the registers of a bound controller.
        let words =
            format!("console=ttyS0 loglevel=4 panic=-1 iomem=relaxed rdinit=/init{}", self.kernel_arguments);
        qemu.args(["-append", &words]);
        qemu
    }
}

/// A running guest. Dropping it kills QEMU.
pub struct Vm {
    // Killed before its folder goes.
    qemu: Qemu,
    agent: Agent,
    qmp: Qmp,
    earlier_log: String,
    folder: TempDir,
}

impl Vm {
    /// A guest with no drives; add to it.
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    /// Runs a shell script in the guest.
    pub fn run(&mut self, script: &str) -> Result<Output> {
        self.run_within(COMMAND_PATIENCE, script)
    }

    /// Runs a shell script in the guest that may take this long.
    pub fn run_within(&mut self, patience: Duration, script: &str) -> Result<Output> {
        self.agent.run(script, patience).with_context(|| console_tail(self.folder.path()))
    }

    /// Runs a shell script that must end with status 0, and returns what it wrote.
    pub fn run_ok(&mut self, script: &str) -> Result<String> {
        self.run(script)?.into_ok(script)
    }

    /// The kernel's messages of this boot and of those before.
    pub fn kernel_log(&mut self) -> Result<String> {
        let log = self.run_ok("dmesg")?;
        Ok(format!("{}{log}", self.earlier_log))
    }

    /// Reboots the guest in an orderly way (its drivers shut their devices down) and waits until it is back.
    pub fn reboot(&mut self) -> Result<()> {
        self.earlier_log = self.kernel_log()?;
        self.agent.send("sync; /run/busybox reboot -f")?;
        self.wait_ready()
    }

    /// Powers the guest off in an orderly way and waits until QEMU has ended. Returns the kernel's messages.
    pub fn shutdown(mut self) -> Result<String> {
        let log = self.kernel_log()?;
        self.agent.send("sync; /run/busybox poweroff -f")?;
        let deadline = Instant::now() + SHUTDOWN_PATIENCE;
        while self.qemu.ended()?.is_none() {
            ensure!(
                Instant::now() < deadline,
                "the guest does not power off\n{}",
                console_tail(self.folder.path())
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(log)
    }

    /// Kills QEMU as a crash would: nothing is flushed and nobody says goodbye.
    pub fn kill(mut self) {
        self.qemu.kill();
    }

    /// Stops the guest's processors and QEMU itself, so that it answers nothing, until [`Vm::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.signal(rustix::process::Signal::STOP)
    }

    /// Lets a frozen QEMU go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(rustix::process::Signal::CONT)
    }

    /// Executes a QMP command.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        Ok(self.qmp.execute(command, arguments.clone())?)
    }

    /// When QEMU said this event next, also if it has ended since; by the host's clock since 1970.
    pub fn when(&mut self, event: &str) -> Result<Duration> {
        loop {
            let next = self.qmp.event(QMP_PATIENCE)?.with_context(|| format!("QEMU does not say {event}"))?;
            if next.name == event {
                return Ok(next.at);
            }
        }
    }

    /// How long the guest stood still on its way from here to there: from its next STOP to the RESUME there.
    pub fn downtime(&mut self, there: &mut Vm) -> Result<Duration> {
        Ok(there.when("RESUME")?.saturating_sub(self.when("STOP")?))
    }

    /// QEMU has not ended.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.qemu.ended()?.is_none())
    }

    /// A QMP socket for one who moves the guest. It has one client at a time.
    pub fn mover_socket(&self) -> PathBuf {
        self.folder.path().join(MOVER)
    }

    /// This guest as one that leaves.
    pub fn as_source(&self) -> Result<Source> {
        Ok(Source::connect(&self.mover_socket(), QMP_PATIENCE)?)
    }

    /// This QEMU as one that a guest comes to.
    pub fn as_destination(&self) -> Result<Destination> {
        Ok(Destination::connect(&self.mover_socket(), QMP_PATIENCE)?)
    }

    /// Hot-unplugs a device and waits until the guest has let it go.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp.execute("device_del", json!({ "id": id }))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let event = self.qmp.event(deadline.saturating_duration_since(Instant::now()));
            let event =
                event.with_context(|| self.qemu.fate()).with_context(|| console_tail(self.folder.path()))?;
            let event = event.with_context(|| format!("{id} is not let go"))?;
            if event.name == "DEVICE_DELETED" && event.data["device"] == id {
                return Ok(());
            }
        }
    }

    /// Hot-plugs a vfio-user device into the port of the builder's device number `slot`, counted from 1.
    pub fn plug_vfio_user(&mut self, id: &str, socket: &Path, slot: usize) -> Result<()> {
        let mut device = vfio_user_device(id, socket);
        device["bus"] = json!(format!("port{slot}"));
        Ok(self.qmp.execute("device_add", device).map(drop)?)
    }

    /// What the guest wrote on its console.
    pub fn console(&self) -> String {
        read_lossy(&self.folder.path().join("console"))
    }

    fn wait_ready(&mut self) -> Result<()> {
        self.agent.wait_ready(BOOT_PATIENCE).with_context(|| console_tail(self.folder.path()))
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.qemu.0), signal)
            .context("signal QEMU")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", console_tail(self.folder.path()));
        }
    }
}

/// The child process; it never outlives this value.
struct Qemu(Child);

impl Qemu {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("wait for QEMU")
    }

    /// For an error: QEMU closes its sockets just before it can be waited for.
    fn fate(&mut self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        match self.ended() {
            Ok(Some(status)) => format!("QEMU ended with {status}"),
            _ => "QEMU is running".to_owned(),
        }
    }

    fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The words of a printed command line, as a shell splits them.
pub fn words(printed: &str) -> Result<Vec<String>> {
    let script = format!("for word in {}; do printf '%s\\0' \"$word\"; done", printed.trim_end());
    let output = Command::new("sh").arg("-c").arg(script).output().context("run a shell")?;
    ensure!(
        output.status.success(),
        "the shell does not take it: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("words in UTF-8")?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

fn vfio_user_device(id: &str, socket: &Path) -> Value {
    json!({ "driver": "vfio-user-pci", "id": id, "socket": { "type": "unix", "path": socket } })
}

fn listen(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// QEMU connects to all its sockets at its start, or ends.
fn accept(listener: &UnixListener, qemu: &mut Qemu) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accept QEMU's connection"),
        }
        if let Some(status) = qemu.ended()? {
            bail!("QEMU ended at its start with {status}");
        }
        ensure!(Instant::now() < deadline, "QEMU does not connect to its sockets");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn console_tail(folder: &Path) -> String {
    let console = read_lossy(&folder.join("console"));
    let errors = read_lossy(&folder.join("qemu.log"));
    let lines: Vec<&str> = console.lines().collect();
    let tail = &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..];
    format!("the guest's console ends with:\n{}\nQEMU says: {}", tail.join("\n"), errors.trim())
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
