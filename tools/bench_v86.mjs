// SPDX-License-Identifier: GPL-2.0-or-later
// Runs the bench's workloads in v86, a PC emulator for browsers, under node: CPU seconds of the process and a checksum
// for each, as `l4lab bench` has them for the lab. How to come by what it needs is told in docs/bench.md.
//
//     node bench_v86.mjs BIOS IMAGE...          in a folder where v86 was installed by npm
//
// Each image gets a process of its own, so that none profits from what another had compiled.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [bios, ...images] = process.argv.slice(2);
if (!images.length) {
    console.error("give a BIOS, such as /usr/share/seabios/bios.bin, and images of workloads");
    process.exit(2);
}
if (images.length > 1) {
    for (const image of images) {
        spawnSync(process.execPath, [fileURLToPath(import.meta.url), bios, image], { stdio: "inherit" });
    }
    process.exit(0);
}

function contents(path) {
    const bytes = readFileSync(path);
    return { buffer: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) };
}

// Beside the folder we are in, not beside this file: nothing is installed into the lab.
const build = dirname(createRequire(join(process.cwd(), "from-here.js")).resolve("v86"));
const { V86 } = await import(pathToFileURL(join(build, "libv86.mjs")));
const emulator = new V86({
    wasm_path: join(build, "v86.wasm"),
    memory_size: 64 << 20,
    bios: contents(bios),
    multiboot: contents(images[0]),
    autostart: true,
    disable_speaker: true,
});
let said = "";
let begun;
emulator.add_listener("serial0-output-byte", (byte) => {
    said += String.fromCharCode(byte);
    if (said === ">") {
        begun = process.cpuUsage();
    } else if (said.endsWith("\n")) {
        const used = process.cpuUsage(begun);
        const seconds = (used.user + used.system) / 1e6;
        console.log(`${basename(images[0], ".bin")}: ${seconds.toFixed(3)} s, ${said.slice(1).trim()}`);
        process.exit(0);
    }
});
