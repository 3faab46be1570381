"""``exitbench store``: the stored artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench_core.cli.common import app, refuse_output, table
from bench_core.errors import one_line

if TYPE_CHECKING:
    from bench_core.store.local import Store

store_app = typer.Typer(help="The store of networks, traces and policies: look, check, share.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command("list")
def store_list() -> None:
    """List the stored artifacts: kind, key, size and description."""
    from bench_core.store.inventory import entries
    from bench_core.store.local import default_store

    store = default_store()
    found = entries(store)
    _name_left_alone(store)
    rows = [(entry.kind, entry.key[:16], entry.size, entry.what) for entry in found]
    here = {(entry.kind, entry.key) for entry in found}
    elsewhere = {names: size for names, size in store.shared().items() if names not in here}
    rows += [(kind, key[:16], size, "not here yet") for (kind, key), size in elsewhere.items()]
    if rows:
        print(table(rows, ["kind", "key", "bytes", "what"], disable_numparse=[1]))
    print(f"{len(found)} artifacts, {sum(entry.size for entry in found)} bytes in {store.root}")
    _print_shared(store)


@store_app.command("show")
def store_show(key: Annotated[str, typer.Argument(help="Key of an artifact, or its first digits.")]) -> None:
    """Show an artifact's header: tensors, how it was made, digests."""
    import json

    from bench_core.store.inventory import choose, describe, entries
    from bench_core.store.local import default_store

    for entry in choose(entries(default_store()), [key]):
        print(json.dumps(describe(entry), indent=1))


@store_app.command("verify")
def store_verify() -> None:
    """Compare every artifact with its digests; exit code 1 if one is damaged or a file is unknown."""
    from bench_core.store.inventory import verify
    from bench_core.store.local import default_store

    store = default_store()
    whole, problems = verify(store)
    for problem in problems:
        print(one_line(problem))
    print(f"{whole} artifacts whole, {len(problems)} files damaged or unknown")
    _print_shared(store)
    if problems:
        raise typer.Exit(1)


@store_app.command("prune")
def store_prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="Also remove artifacts older than this many days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed without removing it.")] = False,
) -> None:
    """Remove damaged artifacts and unfinished ones of stopped runs."""
    from bench_core.store.inventory import prune
    from bench_core.store.local import default_store

    store = default_store()
    removed = prune(store, older_than=older_than, dry_run=dry_run)
    _name_left_alone(store)
    for line in removed:
        print(one_line(line))
    print(f"{len(removed)} {'would be removed' if dry_run else 'removed'}")


@store_app.command("remove")
def store_remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="KEY|WORKLOAD...", help="Workloads, or the first 8 digits or more of single keys."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed without removing it.")] = False,
) -> None:
    """Remove single artifacts, or everything made for a workload."""
    from bench_core.store.inventory import removable, remove
    from bench_core.store.local import default_store

    store = default_store()
    chosen = removable(store, names)
    unsent = set(store.unsent())
    for entry in chosen:
        if not dry_run:
            remove(store, [entry])
        remark = " (was not sent yet)" if (entry.kind, entry.key) in unsent else ""
        print(f"{entry.kind}/{entry.key[:16]}: {entry.size} bytes, {entry.what}{remark}")
    done = "would be removed" if dry_run else "removed"
    print(f"{len(chosen)} artifacts, {sum(entry.size for entry in chosen)} bytes {done}")
    if store.url:
        print(f"copies at {store.url} stay, and come back when a run needs them")


@store_app.command("export")
def store_export(
    names: Annotated[list[str], typer.Argument(help="Workloads, or keys of single artifacts.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Write a workload's network, traces and policies into one file, for import into another store."""
    from bench_core.store.inventory import choose, entries, shipped_entries
    from bench_core.store.local import default_store
    from bench_core.trace.bundles import export_bundle

    refuse_output(output)
    members = export_bundle(choose([*entries(default_store()), *shipped_entries()], names), output)
    for member in members:
        print(f"{member.name}: {member.size} bytes")
    print(f"{output}: {len(members)} artifacts")


@store_app.command("import")
def store_import(bundle: Annotated[Path, typer.Argument(help="File written by `store export`.")]) -> None:
    """Import the artifacts of an exported file into the store, after checking all of it."""
    from bench_core.store.local import default_store
    from bench_core.trace.bundles import import_bundle

    store = default_store()
    new = import_bundle(bundle, store)
    for member in new:
        print(f"{member.name}: {member.size} bytes")
    print(f"{len(new)} artifacts are new in {store.root}")


def _name_left_alone(store: "Store") -> None:
    """Report on stderr links, FIFOs, sockets and devices in the store's folders, which are ignored."""
    from bench_core.store.inventory import left_alone
    from bench_core.util.progress import note

    for line in left_alone(store):
        note(line)


def _print_shared(store: "Store") -> None:
    """Print what the store's URL holds, if it has one."""
    if store.url:
        shared = store.shared()
        print(
            f"{len(shared)} artifacts, {sum(shared.values())} bytes at {store.url}, checked when they are brought here"
        )
        if unsent := store.unsent():
            print(f"{len(unsent)} artifacts are not sent there yet; the next run that needs them sends them")
