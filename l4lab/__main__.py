# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m l4lab` is the `l4lab` command. Ctrl-C while it is still being loaded ends it as it does later."""


def main() -> None:
    """Run the command line."""
    try:
        from l4lab.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
