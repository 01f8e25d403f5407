"""Starts a service and walks the whole path once: upload, train, predict. Run it through scripts/quickstart."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from app.client import Client, ClientError
from app.terminal import TrainingProgress, listing, loss_curve, metrics_table
from scripts.service import Service, ServiceDied, is_free

ROOT = Path(__file__).parent.parent
BIRDS = [
    {"island": "Torgersen", "bill_length_mm": 39.1, "bill_depth_mm": 18.7, "flipper_length_mm": 181,
     "body_mass_g": 3750, "sex": "male", "year": 2007},
    {"island": "Biscoe", "bill_length_mm": 47.5, "bill_depth_mm": 15.0, "flipper_length_mm": 218,
     "body_mass_g": 4950, "sex": "female", "year": 2009},
    {"island": "Dream", "bill_length_mm": 49.8, "bill_depth_mm": 18.4, "flipper_length_mm": 195,
     "body_mass_g": None, "sex": None, "year": 2008},
]  # fmt: skip
console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit when the birds are predicted; 0 only if all worked")
    once: bool = parser.parse_args().once
    service = Service(ROOT, choose_port(), settings())
    try:
        with console.status(f"Starting the service at {service.url} …"):
            service.start()
        console.print(f"[green]✓[/] the service is ready at {service.url}")
        walk(service.url)
        if not once:
            console.print("\nServing until Ctrl-C.")
            return service.wait()
    except (ClientError, ServiceDied) as error:
        console.print(f"[red]The quickstart failed:[/] {error}\nThe service's log is {service.log}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
    finally:
        service.stop()
    return 0


def choose_port() -> int | None:
    """PORT, or 8000; None, which is any free one, where that is taken."""
    return int(os.environ["PORT"]) if "PORT" in os.environ else 8000 if is_free(8000) else None


def settings() -> dict[str, str]:
    """Those of the environment, but no keys: the service is for this machine alone."""
    given = {name: value for name, value in os.environ.items() if name.startswith("GRADSERVE_")}
    return given | {"GRADSERVE_API_KEYS": "", "GRADSERVE_HOST": "127.0.0.1"}


def walk(url: str) -> None:
    with Client(url) as client:
        dataset = client.upload_dataset("penguins", ROOT / "examples" / "penguins.csv")
        console.print(f"[green]✓[/] uploaded {dataset['num_rows']} penguins, {len(dataset['columns'])} columns")
        with TrainingProgress("training") as progress:
            job = client.train(model="penguins", data={"dataset": "penguins", "target": "species"}, on_event=progress)
        console.print(f"[green]✓[/] trained version {job['version']} of the model penguins\n")
        console.print(metrics_table(job["metrics"]), loss_curve(client.history(job["id"])), sep="\n\n", end="\n\n")
        predict_birds(client)
        console.print(f"\nThe model    {client.base_url}/models/penguins/versions/{job['version']}")
        console.print(f"Try the API  {client.base_url}/docs")


def predict_birds(client: Client) -> None:
    answer = client.predict("penguins", BIRDS)
    rows = [
        bird | {"prediction": species, "probability": max(probabilities)}
        for bird, species, probabilities in zip(BIRDS, answer["predictions"], answer["probabilities"], strict=True)
    ]
    console.print(listing(rows, ["island", "bill_length_mm", "flipper_length_mm", "sex", "prediction", "probability"]))


if __name__ == "__main__":
    sys.exit(main())
