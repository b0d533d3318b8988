"""What the board gets."""

from narrowcast.chips.esp.kit import ESPDL_FILE
from narrowcast.deploy.delivery import Delivery
from narrowcast.deploy.kits import KITS, chosen_kit, deploy
from narrowcast.deploy.make import quantize

__all__ = ["ESPDL_FILE", "KITS", "Delivery", "chosen_kit", "deploy", "quantize"]
