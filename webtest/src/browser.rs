//! Chromium without a screen, driven through chromedriver.
//!
//! Most of what is asked goes by the browser's own protocol, which chromedriver passes on: scripts run whatever the page's policy
//! says, and the colour scheme can be chosen.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmtest::image::{cache_folder, install_on_host};

use crate::base64;
use crate::http::ask_port;

/// Packages, and the file that says that they are there. Without a font there is no text.
const PACKAGES: [(&str, &str); 3] = [
    ("chromium", "/usr/bin/chromium"),
    ("chromium-driver", "/usr/bin/chromedriver"),
    ("fonts-dejavu-core", "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
];
/// It runs as root in CI, where there is nothing to shield it from but itself; and it asks nobody for anything.
const ARGUMENTS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
const PATIENCE: Duration = Duration::from_secs(60);

/// Light or dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Dark text on light ground.
    Light,
    /// Light text on dark ground.
    Dark,
}

impl Scheme {
    /// CSS's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        }
    }
}

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

/// Installs what is missing; does nothing where all is there.
pub fn ensure_installed() -> Result<()> {
    if PACKAGES.iter().all(|(_, file)| Path::new(file).exists()) {
        return Ok(());
    }
    let folder = cache_folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let lock = File::create(folder.join("chromium.lock")).context("create a lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("wait for others who install Chromium")?;
    PACKAGES.iter().try_for_each(|(package, file)| install_on_host(package, file))
}

impl Browser {
    /// A new browser with an empty profile.
    pub fn start() -> Result<Browser> {
        ensure_installed()?;
        let profile = TempDir::with_prefix("chromium-").context("create a folder for the browser")?;
        let mut driver = Command::new("/usr/bin/chromedriver")
            .args(["--port=0", "--log-level=SEVERE"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start chromedriver")?;
        let port = match port(&mut driver) {
            Ok(port) => port,
            Err(error) => {
                let _ = driver.kill();
                let _ = driver.wait();
                return Err(error);
            }
        };
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str()]).collect();
        let wish = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.ask("POST", "/session", &wish).context("start Chromium")?;
        session["sessionId"].as_str().context("a session has an id")?.clone_into(&mut browser.session);
        Ok(browser)
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.ask("POST", &self.path("url"), &json!({ "url": url })).map(drop)
    }

    /// The value of an expression in the page; a promise is waited for.
    pub fn value(&self, expression: &str) -> Result<Value> {
        let wish = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.chromium("Runtime.evaluate", &wish)?;
        if let Some(fault) = answer.get("exceptionDetails") {
            bail!("{expression}\nthrew {fault}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// The same as text.
    pub fn text(&self, expression: &str) -> Result<String> {
        let value = self.value(expression)?;
        value.as_str().map(str::to_owned).with_context(|| format!("{expression}\nis {value}, no text"))
    }

    /// Waits until an expression is true; else tells what is to be seen.
    pub fn wait(&self, what: &str, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.value(expression)? != Value::Bool(true) {
            if Instant::now() >= deadline {
                let seen = self.text("document.body.innerText")?;
                bail!(
                    "{what}: not within {PATIENCE:?} ({expression})\n-- the page:\n{seen}\n-- its log: {:?}",
                    self.log()?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Presses a key that has no letter, such as `Tab` or `ArrowUp`.
    pub fn press(&self, key: &str) -> Result<()> {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            other => bail!("{other}: no key that tests know"),
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let mut wish = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                wish["text"] = json!(text);
            }
            self.chromium("Input.dispatchKeyEvent", &wish)?;
        }
        Ok(())
    }

    /// Sets what the page believes its person prefers.
    pub fn scheme(&self, scheme: Scheme) -> Result<()> {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme.word() }]);
        self.chromium("Emulation.setEmulatedMedia", &json!({ "features": feature })).map(drop)
    }

    /// Sets the window's size in CSS pixels; a height of 0 is that of the whole page.
    pub fn size(&self, width: u32, height: u32) -> Result<()> {
        let of = |height: u32| json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.chromium("Emulation.setDeviceMetricsOverride", &of(height.max(600)))?;
        if height == 0 {
            let whole = self.value("document.documentElement.scrollHeight")?;
            let whole =
                whole.as_u64().and_then(|pixels| u32::try_from(pixels).ok()).context("a page's height")?;
            self.chromium("Emulation.setDeviceMetricsOverride", &of(whole))?;
            // The next frame is drawn with it.
            self.value("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(() => drawn(true))))")?;
        }
        Ok(())
    }

    /// A picture of what is to be seen, as PNG.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let answer = self.chromium("Page.captureScreenshot", &json!({ "format": "png" }))?;
        let text = answer["data"].as_str().context("a picture is text")?;
        base64::decode(text).context("a picture is base64")
    }

    /// What the browser had to complain about since the last look: errors, and what the policy forbade.
    pub fn log(&self) -> Result<Vec<String>> {
        let answer = self.ask("POST", &self.path("se/log"), &json!({ "type": "browser" }))?;
        let entries = answer.as_array().cloned().unwrap_or_default();
        Ok(entries.iter().map(|entry| format!("{} {}", entry["level"], entry["message"])).collect())
    }

    fn chromium(&self, command: &str, parameters: &Value) -> Result<Value> {
        let wish = json!({ "cmd": command, "params": parameters });
        self.ask("POST", &self.path("goog/cdp/execute"), &wish)
    }

    fn path(&self, rest: &str) -> String {
        format!("/session/{}/{rest}", self.session)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut answer = ask_port(self.port, method, path, body)?;
        ensure!(answer.status == 200, "chromedriver: {path}: {}", answer.body["value"]["message"]);
        Ok(answer.body["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium goes with its session; chromedriver alone would leave it behind.
        let _ = self.ask("DELETE", &format!("/session/{}", self.session), &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// `ChromeDriver was started successfully on port 41234.`
fn port(driver: &mut Child) -> Result<u16> {
    let mut output = BufReader::new(driver.stdout.take().context("chromedriver's output")?);
    let mut line = String::new();
    while output.read_line(&mut line).context("read chromedriver's output")? > 0 {
        if let Some((_, rest)) = line.split_once("successfully on port ") {
            let port = rest.trim().trim_end_matches('.').parse().context("chromedriver's port")?;
            // It may go on talking.
            std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
            return Ok(port);
        }
        line.clear();
    }
    bail!("chromedriver ended at its start")
}
