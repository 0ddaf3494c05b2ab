"""The words of the synthetic catalogue: 12 categories of 6 subtopics each, with things and what is said of them.

A constant, whatever the seed, so that a text encoder trained on one synthetic population reads any other.
"""

from dataclasses import dataclass

_WORDS = """
Sports
  running: running shoes, trail runners, race vest, hydration belt, pace watch | marathon, cushioned sole, long distance
  yoga: yoga mat, meditation cushion, stretch strap, cork block, leggings | vinyasa, flexibility, calm breathing
  climbing: climbing rope, harness, carabiner set, chalk bag, belay device | bouldering, rock face, dynamic grip
  swimming: swim goggles, swimsuit, kickboard, swim cap, nose clip | freestyle laps, open water, chlorine resistant
  cycling: road bike, bike helmet, pedals, bike computer, padded shorts | gravel rides, peloton, aerodynamic
  football: football boots, goalkeeper gloves, shin guards, match ball, jersey | penalty kick, midfield, league pitch
Kitchen
  coffee: espresso machine, coffee grinder, moka pot, milk frother, filter cone | arabica beans, crema, barista
  baking: stand mixer, cake tin, rolling pin, piping bag, proofing basket | sourdough, pastry crust, icing
  knives: chef knife, paring knife, whetstone, knife block, cleaver | damascus steel, razor edge, sashimi slicing
  tea: teapot, matcha whisk, tea infuser, kettle, loose leaf tea | oolong, jasmine, steeping
  grilling: charcoal grill, smoker, tongs, meat thermometer, grill brush | barbecue ribs, hickory wood, sear marks
  storage: glass jar, lunch box, spice rack, vacuum sealer, bread bin | airtight lid, pantry order, leftovers
Electronics
  headphones: headphones, earbuds, headset, headphone amp, ear pads | noise cancelling, bass response, studio listening
  cameras: mirrorless camera, camera lens, tripod, camera strap, flash unit | aperture, portrait bokeh, landscape photo
  drones: quadcopter drone, propeller set, gimbal, drone battery, landing pad | aerial footage, hover, flight range
  keyboards: mechanical keyboard, keycap set, wrist rest, switch tester, numpad | tactile switches, typing feel, hotkeys
  wearables: smartwatch, fitness band, watch charger, watch strap, sleep ring | heart rate, step counter, notifications
  gaming: game console, gamepad, racing wheel, gaming mouse, arcade stick | multiplayer, frame rate, boss fight
Home
  lighting: floor lamp, pendant light, led strip, desk lamp, wall sconce | warm white, dimmable glow, lumens
  bedding: duvet cover, pillow, linen sheets, mattress topper, quilt | thread count, cool sleep, hypoallergenic down
  plants: monstera, succulent trio, flower pot, plant stand, watering can | repotting soil, leafy shade, photosynthesis
  cleaning: robot vacuum, mop, microfibre cloth, lint roller, steam cleaner | dust free, spotless floor, stain removal
  furniture: armchair, bookshelf, coffee table, nightstand, sideboard | oak veneer, flat pack, living room
  tools: cordless drill, screwdriver set, spirit level, tape measure, claw hammer | torque, drywall, renovation
Fashion
  sneakers: sneakers, high tops, canvas trainers, shoe laces, skate shoes | streetwear, limited colourway, rubber toe
  jewellery: necklace, hoop earrings, signet ring, charm bracelet, brooch | sterling silver, gemstone, gold plated
  outerwear: down jacket, raincoat, trench coat, parka, windbreaker | waterproof shell, insulated hood, winter layers
  handbags: tote bag, clutch, crossbody bag, leather purse, bucket bag | full grain leather, magnetic clasp, evening out
  denim: skinny jeans, denim jacket, dungarees, denim skirt, bootcut jeans | selvedge, indigo wash, raw hem
  sunglasses: aviators, cat eye frames, glasses case, polarised lenses, clip ons | uv protection, tortoiseshell, glare
Beauty
  skincare: face serum, moisturiser, clay mask, toner, eye cream | hyaluronic acid, retinol, glowing complexion
  makeup: lipstick, eyeshadow palette, mascara, foundation, blush | matte finish, contour, smoky eyes
  haircare: shampoo, hair dryer, curling iron, conditioner, hair oil | frizz control, keratin, scalp care
  fragrance: eau de parfum, cologne, body mist, scented candle, perfume sampler | sandalwood, bergamot notes, musk
  nails: nail polish, gel lamp, cuticle oil, nail file, press on nails | manicure, glossy top coat, chip free
  shaving: safety razor, shaving brush, beard balm, aftershave, trimmer | stubble, lather, close shave
Books
  fantasy: dragon saga, wizard novel, epic fantasy boxset, elven chronicle, sword tale | magic kingdom, prophecy, quest
  crime: detective novel, murder mystery, noir thriller, cold case file, heist story | forensic clue, alibi, inspector
  history: roman history, war chronicle, royal biography, atlas of empires | archive, ancient dynasty, treaty
  cookbooks: pasta cookbook, vegan recipes, curry cookbook, bread bible | home cook, weeknight supper, seasonal menu
  science: astronomy primer, quantum physics guide, evolution essay, brain atlas | universe, experiment, theorem
  comics: manga volume, superhero comic, graphic novel, webtoon omnibus | ink panels, cliffhanger, origin story
Music
  guitar: electric guitar, acoustic guitar, guitar strings, capo, guitar pedal | fretboard, distortion, blues riff
  piano: digital piano, piano bench, sheet music, sustain pedal, metronome | weighted keys, sonata, arpeggio
  vinyl: turntable, record sleeve, phono preamp, vinyl album, stylus | analog warmth, crate digging, remastered pressing
  drums: drum kit, cymbal, drumsticks, practice pad, cajon | groove, snare roll, percussion
  production: studio monitor, audio interface, midi controller, microphone, synthesizer | mixing desk, oscillator
  festival: concert poster, ear plugs, band hoodie, festival wristband, glow sticks | live stage, encore, headliner
Toys
  puzzles: jigsaw puzzle, wooden brainteaser, puzzle cube, puzzle mat, 3d puzzle | thousand pieces, logic, edge pieces
  boardgames: strategy board game, card game, dice tower, party game | game night, cooperative, victory points
  bricks: brick set, building bricks, brick baseplate, minifigure | interlocking, build instructions, modular city
  dolls: fashion doll, dollhouse, doll stroller, rag doll, doll wardrobe | pretend play, tiny furniture, braided hair
  trains: model train, railway track, locomotive, signal box, freight wagon | scale model, steam engine, diorama
  plush: teddy bear, plush rabbit, cuddly penguin, stuffed unicorn, plush sloth | huggable, soft fur, bedtime
Pets
  dogs: dog leash, dog bed, chew toy, puppy treats, dog harness | fetch, obedience, waggy tail
  cats: cat tree, litter box, scratching post, catnip mouse, cat fountain | purring, kitten, whiskers
  aquarium: fish tank, aquarium filter, coral gravel, fish flakes, tank heater | tropical guppy, reef, aquascape
  birds: bird cage, seed mix, parrot swing, bird bath, cuttlebone | feathers, budgie, chirping
  reptiles: terrarium, heat mat, basking lamp, gecko hide, cricket feeder | vivarium, humidity, shedding skin
  horses: riding saddle, horse bridle, hoof pick, riding boots, horse blanket | dressage, stable, canter
Travel
  luggage: carry on suitcase, packing cubes, luggage scale, duffel bag | spinner wheels, airport, overhead cabin
  camping: tent, sleeping bag, camping stove, headlamp, hammock | campfire, wilderness, lightweight poles
  beach: beach towel, parasol, snorkel set, beach tent, sun cream | seaside, sand proof, tropical lagoon
  skiing: ski boots, ski goggles, snowboard, ski poles, thermal base layer | powder snow, alpine slope, chairlift
  sailing: life jacket, sailing gloves, deck shoes, marine compass, dry bag | regatta, mainsail, harbour
  citybreak: city guide, museum pass, phrasebook, money belt, travel adapter | weekend away, cobbled streets, landmark
Garden
  roses: rose bush, pruning shears, rose feed, garden trellis, climbing rose | blossom, thorn proof, petals
  vegetables: tomato seedlings, raised bed, compost bin, seed potatoes | organic harvest, allotment, germination
  lawn: lawn mower, grass seed, sprinkler, edging shears, leaf rake | turf, mulching, striped grass
  pond: pond pump, water lily, koi food, pond liner, garden fountain | algae control, waterfall, oxygenating
  wildlife: bird feeder, bee hotel, hedgehog house, wildflower mix, bat box | pollinators, nesting, biodiversity
  patio: garden sofa, fire pit, patio heater, bistro set, outdoor rug | al fresco, weatherproof rattan, sunset terrace
"""

_BRANDS = """
Alder Brisk Cobalt Dovetail Ember Fjord Gable Harrow Indra Juniper Kestrel Lumen Marlow Norden Orchard Pico Quill
Rowan Sable Tarn Umber Vesper Willow Xeno Yarrow Zephyr
"""
_ADJECTIVES = """
classic compact deluxe durable elegant essential everyday handmade lightweight modern portable premium reliable
simple slim stylish sturdy vintage
"""
BRANDS = tuple(_BRANDS.split())
ADJECTIVES = tuple(_ADJECTIVES.split())


@dataclass(frozen=True)
class Subtopic:
    """What items, queries and interests are about."""

    name: str
    category: str
    things: tuple[str, ...]
    remarks: tuple[str, ...]


def _parse(words: str) -> tuple[Subtopic, ...]:
    found, category = [], ""
    for line in filter(str.strip, words.splitlines()):
        if not line.startswith(" "):
            category = line
            continue
        name, _, rest = line.strip().partition(": ")
        things, remarks = (tuple(part.strip().split(", ")) for part in rest.split(" | "))
        found.append(Subtopic(name, category, things, remarks))
    return tuple(found)


SUBTOPICS = _parse(_WORDS)
