"""The words of the synthetic feed: topics, the industry each belongs to, and what is written about them.

Words are the only thing here that a language model can know beforehand. Order matters: later topics, and the later
words of a topic, appear later in the synthetic world.
"""
# ruff: noqa: E501 - a table reads best with one topic per line

from __future__ import annotations

# Words that say nothing about a topic.
FILLERS = (
    "how",
    "why",
    "lessons",
    "guide",
    "notes",
    "inside",
    "rethinking",
    "building",
    "better",
    "first",
    "real",
    "small",
)
SENIORITIES = ("junior", "senior", "lead", "director", "founder")
ROLES = ("engineer", "analyst", "manager", "researcher", "consultant", "writer", "designer", "student")

# topic: (industry, words)
# fmt: off
TOPICS: dict[str, tuple[str, list[str]]] = {
    topic: (industry, words.split())
    for topic, industry, words in (
        ("databases", "technology", "sql index query transaction schema replica shard latency vector embedded lakehouse branch"),
        ("frontend", "technology", "browser css component layout typescript render accessibility animation hydration signals island edge"),
        ("security", "technology", "password breach encryption audit phishing firewall patch exploit passkey sandbox provenance attestation"),
        ("cloud", "technology", "cluster container region autoscale kubernetes storage failover quota serverless sidecar finops sovereign"),
        ("banking", "finance", "loan deposit branch credit mortgage interest ledger teller openbanking instant wallet tokenised"),
        ("investing", "finance", "stock bond dividend portfolio index yield hedge broker fractional factor thematic direct"),
        ("insurance", "finance", "premium claim policy actuary risk coverage underwriter deductible parametric telematics embedded cyber"),
        ("accounting", "finance", "invoice tax balance audit payroll expense quarter receipt realtime automation disclosure reconciliation"),
        ("nutrition", "health", "protein vitamin meal fibre breakfast sugar calorie diet microbiome fasting fermented glucose"),
        ("fitness", "health", "workout strength running muscle sleep recovery marathon training mobility wearable zone cadence"),
        ("medicine", "health", "doctor patient hospital diagnosis surgery vaccine clinical therapy telehealth genomics biomarker robotic"),
        ("wellbeing", "health", "stress mindful burnout therapy habit focus balance rest journaling boundaries resilience digital"),
        ("solar", "energy", "panel rooftop inverter sunlight grid watt subsidy module perovskite bifacial agrivoltaic tracker"),
        ("oil", "energy", "barrel refinery pipeline drilling crude rig export reserve methane decommission capture abatement"),
        ("batteries", "energy", "lithium charge cell storage cathode cycle pack anode sodium solidstate recycling silicon"),
        ("teaching", "education", "classroom lesson pupil curriculum homework exam teacher grading tutor adaptive feedback portfolio"),
        ("languages", "education", "grammar accent vocabulary fluent spanish pronunciation translation verb immersion subtitle spaced dialogue"),
        ("universities", "education", "campus degree lecture thesis scholarship professor admission faculty microcredential hybrid alumni ranking"),
        ("film", "media", "director scene camera script actor festival studio editing streaming volumetric restoration anthology"),
        ("music", "media", "album guitar concert melody studio rhythm vinyl singer spatial remix playlist modular"),
        ("journalism", "media", "headline editor reporter source interview newsroom deadline column newsletter verification local podcast"),
        ("gaming", "media", "console player level quest multiplayer studio arcade controller indie speedrun roguelike crossplay"),
        ("robotics", "manufacturing", "arm sensor actuator gripper assembly servo welding conveyor cobot humanoid teleoperation dexterity"),
        ("logistics", "manufacturing", "warehouse freight pallet shipment route container customs inventory drone microhub nearshoring lastmile"),
        ("textiles", "manufacturing", "cotton fabric weave dye loom fashion thread garment upcycled traceable biobased knit"),
        ("hiking", "travel", "trail summit backpack tent mountain boots map forest ultralight thruhike refuge wild"),
        ("cities", "travel", "museum cathedral hostel metro street market walking guidebook nomad slow night rooftop"),
        ("aviation", "travel", "airport runway pilot cabin flight turbine luggage boarding hydrogen electric supersonic biofuel"),
        ("agents", "technology", "agent prompt tool planner context memory orchestration evaluation guardrail delegation reasoning handoff"),
        ("quantum", "technology", "qubit entangled superposition annealing cryostat gate decoherence photon errorcorrection logical surface magic"),
        ("stablecoins", "finance", "stablecoin token peg reserve onchain settlement custody remittance treasury issuance redemption programmable"),
        ("longevity", "health", "ageing lifespan senolytic telomere healthspan epigenetic rapamycin clock plasma metformin biological reversal"),
        ("fusion", "energy", "tokamak plasma ignition stellarator deuterium magnet laser breeding superconducting net pilotplant divertor"),
        ("creators", "media", "creator sponsor shortform audience livestream merch membership algorithm avatar clips syndication cohort"),
        ("printing", "manufacturing", "printer filament resin additive nozzle layer powder sintering lattice bioprint metal onsite"),
        ("spaceflight", "travel", "rocket orbit astronaut launch capsule booster moon payload reusable starport lunar suborbital"),
    )
}
# fmt: on
# Topics up to this one exist from the beginning.
FIRST_TOPICS = 20
