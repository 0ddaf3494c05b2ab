"""Names of the Kafka topics."""

from models.contract import SCENARIOS

EVENT_TOPICS = {scenario: f"events.{scenario}" for scenario in SCENARIOS}  # keyed by user_id
SCENARIO_OF = {topic: scenario for scenario, topic in EVENT_TOPICS.items()}
ITEMS = "items"  # keyed by item_id, compacted
DEAD = "events.dead"  # the original key and value; why and where from in headers
UPDATED = "profiles.updated"  # keyed by user_id

ALL = (*EVENT_TOPICS.values(), ITEMS, DEAD, UPDATED)
