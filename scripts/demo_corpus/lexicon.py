"""The lexicon: German lemmas, their English translations and their paradigms.

The tables at the top are the data; the classes below read them once, when the
module is imported, and inflect the entries.  Cases are "nom", "acc" and "dat",
numbers "sg" and "pl", persons 1 to 3, genders "m", "f" and "n".
"""

import re
from functools import cache
from typing import NamedTuple

CASES = ("nom", "acc", "dat")

# German, gender, plural ("-": mass noun), English[/plural if irregular], +tags.
# The heading of a block is the tag that all its nouns carry.
NOUN_TABLE = """
[person]
Mann m Männer man/men
Frau f Frauen woman/women
Kind n Kinder child/children
Junge m Jungen boy
Mädchen n Mädchen girl
Lehrer m Lehrer teacher +job
Lehrerin f Lehrerinnen teacher +job
Arzt m Ärzte doctor +job
Ärztin f Ärztinnen doctor +job
Student m Studenten student +job
Studentin f Studentinnen student +job
Nachbar m Nachbarn neighbor
Nachbarin f Nachbarinnen neighbor
Freund m Freunde friend +kin
Bruder m Brüder brother +kin
Schwester f Schwestern sister +kin
Vater m Väter father +kin
Mutter f Mütter mother +kin
Großvater m Großväter grandfather +kin
Großmutter f Großmütter grandmother +kin
Sohn m Söhne son +kin
Tochter f Töchter daughter +kin
Onkel m Onkel uncle +kin
Tante f Tanten aunt +kin
Bäcker m Bäcker baker +job
Maler m Maler painter +job
Sängerin f Sängerinnen singer +job
Polizist m Polizisten policeman/policemen +job
Bauer m Bauern farmer +job
Kollege m Kollegen colleague
Kollegin f Kolleginnen colleague
Gast m Gäste guest
Chef m Chefs boss
Tourist m Touristen tourist
Journalistin f Journalistinnen journalist +job
[animal]
Hund m Hunde dog +pet
Katze f Katzen cat +pet
Pferd n Pferde horse +pet
Vogel m Vögel bird +pet
Kaninchen n Kaninchen rabbit +pet
Kuh f Kühe cow +pet
Ente f Enten duck +pet
Schwein n Schweine pig +pet
Maus f Mäuse mouse/mice
Fuchs m Füchse fox
Bär m Bären bear
Affe m Affen monkey
Löwe m Löwen lion
Elefant m Elefanten elephant
[food]
Apfel m Äpfel apple +cuttable
Banane f Bananen banana +cuttable
Birne f Birnen pear +cuttable
Orange f Orangen orange +cuttable
Tomate f Tomaten tomato +cuttable
Kartoffel f Kartoffeln potato +cuttable +cookable
Ei n Eier egg +cookable
Kuchen m Kuchen cake +cuttable +bakable
Pizza f Pizzas pizza +cuttable +bakable
Keks m Kekse cookie +bakable
Salat m Salate salad
Brot n - bread +cuttable +bakable
Käse m - cheese +cuttable
Fleisch n - meat +cuttable +cookable
Fisch m - fish +cookable
Reis m - rice +cookable
Suppe f - soup +cookable
Schokolade f - chocolate
Honig m - honey
[drink]
Wasser n - water
Milch f - milk
Kaffee m - coffee
Tee m - tea
Saft m - juice
Bier n - beer
Wein m - wine
[text]
Buch n Bücher book +writable +goods
Brief m Briefe letter +writable
Roman m Romane novel +writable +goods
Gedicht n Gedichte poem +writable
Geschichte f Geschichten story +writable +tale
Artikel m Artikel article +writable
E-Mail f E-Mails email +writable
Zeitung f Zeitungen newspaper +goods
[clothes]
Hemd n Hemden shirt +goods
Kleid n Kleider dress +goods
Rock m Röcke skirt +goods
Jacke f Jacken jacket +goods
Mantel m Mäntel coat +goods
Hut m Hüte hat +goods
Schuh m Schuhe shoe +goods
Pullover m Pullover sweater +goods
Schal m Schals scarf/scarves +goods
[vehicle]
Auto n Autos car +car
Fahrrad n Fahrräder bicycle +car
Motorrad n Motorräder motorcycle +car
Boot n Boote boat +car
Bus m Busse bus +transit
Zug m Züge train +transit
Schiff n Schiffe ship +transit
Flugzeug n Flugzeuge airplane +transit
[thing]
Schlüssel m Schlüssel key +goods
Tasche f Taschen bag +goods
Koffer m Koffer suitcase +goods
Ball m Bälle ball +goods
Uhr f Uhren watch/watches +goods +device
Lampe f Lampen lamp +goods +device +switch
Computer m Computer computer +goods +device +switch
Radio n Radios radio/radios +goods +device +switch
Kamera f Kameras camera +goods +device +switch
Spiegel m Spiegel mirror +goods
Teller m Teller plate +goods
Tasse f Tassen cup +goods
Flasche f Flaschen bottle +goods
Messer n Messer knife/knives +goods
Löffel m Löffel spoon +goods
Regenschirm m Regenschirme umbrella +goods
Bild n Bilder picture +goods +drawing
Blume f Blumen flower +goods +drawing
Geschenk n Geschenke present +goods
Gitarre f Gitarren guitar +goods
Geige f Geigen violin +goods
[furniture]
Tisch m Tische table +goods
Stuhl m Stühle chair +goods
Bett n Betten bed +goods
Sofa n Sofas sofa/sofas +goods
Regal n Regale shelf/shelves +goods
[opening]
Tür f Türen door
Fenster n Fenster window
[abstract]
Frage f Fragen question +puzzle
Antwort f Antworten answer
Problem n Probleme problem +puzzle
Idee f Ideen idea
Plan m Pläne plan
Aufgabe f Aufgaben task +puzzle
Traum m Träume dream
[work]
Film m Filme movie +film
Lied n Lieder song +song
Spiel n Spiele game +game
[place]
Haus n Häuser house +building
Küche f Küchen kitchen +room
Zimmer n Zimmer room +room
Büro n Büros office +room
Garten m Gärten garden +green
Park m Parks park +green
Wald m Wälder forest +green
Schule f Schulen school +building +sight
Bibliothek f Bibliotheken library +building +sight
Museum n Museen museum +building +sight
Restaurant n Restaurants restaurant +building +sight
Kirche f Kirchen church +building +sight
Krankenhaus n Krankenhäuser hospital +building +sight
Hotel n Hotels hotel +building +sight
Theater n Theater theater +building +sight
Supermarkt m Supermärkte supermarket +building +sight
Bahnhof m Bahnhöfe station +building +sight
Flughafen m Flughäfen airport
Universität f Universitäten university +building +sight
Stadt f Städte city +town
Dorf n Dörfer village +town
Strand m Strände beach +far
Insel f Inseln island +far
Berg m Berge mountain +far
Fluss m Flüsse river +swim
Meer n Meere sea +swim
[sport]
Fußball m - soccer +bare
Tennis n - tennis +bare
Schach n - chess +bare
[language]
Deutsch n - German +bare
Englisch n - English +bare
Spanisch n - Spanish +bare
[festivity]
Urlaub m Urlaube vacation
Fest n Feste party
Reise f Reisen trip
"""

# Weak nouns take this ending everywhere but in the nominative singular.
WEAK_NOUNS = {
    "Junge": "Jungen",
    "Student": "Studenten",
    "Nachbar": "Nachbarn",
    "Polizist": "Polizisten",
    "Bauer": "Bauern",
    "Kollege": "Kollegen",
    "Tourist": "Touristen",
    "Bär": "Bären",
    "Affe": "Affen",
    "Löwe": "Löwen",
    "Elefant": "Elefanten",
}

# German, comparative ("-": not compared), English, English comparative
# ("+": "more ..."), the tags of the nouns it describes.
ADJECTIVE_TABLE = """
alt älter old older person animal text clothes vehicle thing furniture building
jung jünger young younger person animal
neu neuer new newer text clothes vehicle thing furniture building
groß größer big bigger animal vehicle thing furniture building town green
klein kleiner small smaller person animal vehicle thing furniture building town green room
schön schöner beautiful + clothes thing building town green song far
teuer teurer expensive + clothes vehicle thing furniture
billig billiger cheap cheaper clothes vehicle thing furniture
schnell schneller fast faster vehicle
langsam langsamer slow slower vehicle
stark stärker strong stronger person animal
freundlich freundlicher friendly friendlier person
nett netter nice nicer person
klug klüger smart smarter person pet
faul fauler lazy lazier person pet
fleißig fleißiger hard-working + person
müde müder tired + person animal
traurig trauriger sad sadder person tale song film
glücklich glücklicher happy happier person
fröhlich fröhlicher cheerful + person song
hungrig hungriger hungry hungrier person animal
krank kränker sick sicker person animal
berühmt berühmter famous + person museum film
höflich höflicher polite + person
ehrlich ehrlicher honest + person
reich reicher rich richer person
mutig mutiger brave braver person
neugierig neugieriger curious + person pet
gefährlich gefährlicher dangerous + animal
wild wilder wild wilder animal
heiß heißer hot hotter drink cookable
kalt kälter cold colder drink swim
warm wärmer warm warmer drink clothes
frisch frischer fresh fresher food
lecker leckerer tasty tastier food
gesund gesünder healthy healthier food
süß süßer sweet sweeter food
rot - red - clothes car thing
blau - blue - clothes car thing
grün - green - clothes car thing
gelb - yellow - clothes car thing
schwarz - black - clothes car thing pet
weiß - white - clothes car thing pet
braun - brown - clothes furniture pet
interessant interessanter interesting + text abstract film game museum
langweilig langweiliger boring + text film game
spannend spannender exciting + tale film game
lang länger long longer text film song trip
kurz kürzer short shorter text film song
lustig lustiger funny funnier tale film song person
schwierig schwieriger difficult + puzzle game
einfach einfacher easy easier puzzle game
wichtig wichtiger important + text puzzle
seltsam seltsamer strange stranger idea tale film
ruhig ruhiger quiet quieter town green building
dunkel dunkler dark darker room building
sauber sauberer clean cleaner room clothes
schmutzig schmutziger dirty dirtier room clothes vehicle
bequem bequemer comfortable + furniture clothes
schwer schwerer heavy heavier thing furniture
nützlich nützlicher useful + thing text
modern moderner modern + building vehicle
elegant eleganter elegant + clothes building
"""

# Adjectives that lose a vowel before an ending.
ADJECTIVE_STEMS = {"teuer": "teur", "dunkel": "dunkl"}
# Nobody's; "meine Frau" would be "my wife", too.
UNOWNED = tuple(
    "man woman boy girl baker painter singer policeman farmer tourist journalist fox bear monkey lion "
    "elephant mouse forest airport station island beach mountain river sea park museum theater hospital "
    "church supermarket university".split()
)
# What one can be at some times and not at others.
PASSING = (
    "müde",
    "traurig",
    "glücklich",
    "fröhlich",
    "hungrig",
    "krank",
    "heiß",
    "kalt",
    "warm",
    "ruhig",
    "dunkel",
    "sauber",
    "schmutzig",
)
COLOURS = ("rot", "blau", "grün", "gelb", "schwarz", "weiß", "braun")

# German infinitive (separable prefix before "."; "sich" marks reflexives) |
# third person singular | participle | perfect auxiliary | English base, past,
# participle (regular ones left out) followed by "~particle" or "+preposition" |
# subject tags | complements | traits.
#
# Complements: acc:TAGS, dat:TAGS, PREP/CASE:TAGS, loc (where), dir (where to),
# from (where from), on:CASE (on or under furniture).
# Traits: simple (no English progressive), present (no other tense), unwanted (no
# modals), once (no habit); place, manner, with, for (the adjuncts it takes); to
# (English indirect object with "to"), at (English place with "at" for "in");
# town, home, market, at (kinds of place).
VERB_TABLE = """
essen|isst|gegessen|haben|eat ate eaten|person|acc:food|place with
trinken|trinkt|getrunken|haben|drink drank drunk|person|acc:drink|place with
kaufen|kauft|gekauft|haben|buy bought|person|acc:food,drink,goods,car|for
verkaufen|verkauft|verkauft|haben|sell sold|person|acc:goods,car|
bestellen|bestellt|bestellt|haben|order|person|acc:food,drink,goods|for
kochen|kocht|gekocht|haben|cook|person|acc:cookable|place for
backen|backt|gebacken|haben|bake|person|acc:bakable|place for
schneiden|schneidet|geschnitten|haben|cut cut|person|acc:cuttable|manner
lesen|liest|gelesen|haben|read read|person|acc:text|place
schreiben|schreibt|geschrieben|haben|write wrote written|person|acc:writable|for
suchen|sucht|gesucht|haben|look +for|person|acc:person,pet,goods|place with
finden|findet|gefunden|haben|find found|person|acc:pet,goods|simple place
sehen|sieht|gesehen|haben|see saw seen|person|acc:person,animal,vehicle|simple place
hören|hört|gehört|haben|hear heard|person|acc:animal,song|simple
besuchen|besucht|besucht|haben|visit|person|acc:person,museum,town|with
treffen|trifft|getroffen|haben|meet met|person|acc:person|place
haben|hat|gehabt|haben|have had|person|acc:pet,goods,car,puzzle,idea,plan|simple unwanted
brauchen|braucht|gebraucht|haben|need|person|acc:goods,car,food,drink|simple
kennen|kennt|gekannt|haben|know knew known|person|acc:person,town,tale,song|simple present
mögen|mag|gemocht|haben|like|person|acc:person,animal,food,drink,clothes,film|simple present
lieben|liebt|geliebt|haben|love|person|acc:person,pet,food|simple present
hassen|hasst|gehasst|haben|hate|person|acc:food,drink,song,game|simple present
öffnen|öffnet|geöffnet|haben|open|person|acc:opening|manner
schließen|schließt|geschlossen|haben|close|person|acc:opening|manner
reparieren|repariert|repariert|haben|repair|person|acc:vehicle,device|for
waschen|wäscht|gewaschen|haben|wash|person|acc:clothes,car|manner
tragen|trägt|getragen|haben|wear wore worn|person|acc:clothes|
malen|malt|gemalt|haben|paint|person|acc:drawing,animal,building|manner place
fotografieren|fotografiert|fotografiert|haben|photograph|person|acc:person,animal,building|place
füttern|füttert|gefüttert|haben|feed fed|person|acc:pet|place
fangen|fängt|gefangen|haben|catch caught|cat,dog,fox,lion|acc:mouse,bird,rabbit|place
jagen|jagt|gejagt|haben|chase|dog,fox,lion,bear|acc:cat,mouse,bird,rabbit,duck|place
beißen|beißt|gebissen|haben|bite bit bitten|animal|acc:person|unwanted
verlieren|verliert|verloren|haben|lose lost|person|acc:goods|simple place unwanted once
stehlen|stiehlt|gestohlen|haben|steal stole stolen|person|acc:goods,car|unwanted once
verstehen|versteht|verstanden|haben|understand understood|person|acc:abstract,tale,film|simple
beantworten|beantwortet|beantwortet|haben|answer|person|acc:question,letter,email|
vergessen|vergisst|vergessen|haben|forget forgot forgotten|person|acc:goods,idea,plan|simple once
benutzen|benutzt|benutzt|haben|use|person|acc:device,car|place
mieten|mietet|gemietet|haben|rent|person|acc:car,house,room,office|with
bauen|baut|gebaut|haben|build built|person|acc:building,boat,furniture|for with once
putzen|putzt|geputzt|haben|clean|person|acc:window,room,shoe|manner
singen|singt|gesungen|haben|sing sang sung|person|acc:song|place manner
spielen|spielt|gespielt|haben|play|person|acc:sport,game|place with
lernen|lernt|gelernt|haben|learn|person|acc:language|with
wecken|weckt|geweckt|haben|wake woke woken ~up|person|acc:person|
retten|rettet|gerettet|haben|rescue|person|acc:person,animal|
umarmen|umarmt|umarmt|haben|hug|person|acc:person|
heiraten|heiratet|geheiratet|haben|marry|person|acc:doctor,teacher,neighbor,singer,painter|once
an.rufen|ruft|angerufen|haben|call|person|acc:person|
ein.laden|lädt|eingeladen|haben|invite|person|acc:person|
ab.holen|holt|abgeholt|haben|pick ~up|person|acc:person,present,letter|
auf.machen|macht|aufgemacht|haben|open|person|acc:opening,bottle,suitcase|manner
zu.machen|macht|zugemacht|haben|close|person|acc:opening,bottle,suitcase|manner
ein.schalten|schaltet|eingeschaltet|haben|turn ~on|person|acc:switch|
aus.schalten|schaltet|ausgeschaltet|haben|turn ~off|person|acc:switch|
an.ziehen|zieht|angezogen|haben|put put ~on|person|acc:clothes|manner
aus.ziehen|zieht|ausgezogen|haben|take took taken ~off|person|acc:clothes|manner
weg.werfen|wirft|weggeworfen|haben|throw threw thrown ~away|person|acc:goods,text|
auf.räumen|räumt|aufgeräumt|haben|tidy ~up|person|acc:room|with
mit.bringen|bringt|mitgebracht|haben|bring brought ~along|person|acc:food,drink,present,friend|
an.probieren|probiert|anprobiert|haben|try ~on|person|acc:clothes|
an.schauen|schaut|angeschaut|haben|look +at|person|acc:picture,animal,building|
aus.leihen|leiht|ausgeliehen|haben|borrow|person|acc:book,novel,car,camera,umbrella|
schlafen|schläft|geschlafen|haben|sleep slept|person,animal||place
arbeiten|arbeitet|gearbeitet|haben|work|person||place with manner
tanzen|tanzt|getanzt|haben|dance|person||place with
weinen|weint|geweint|haben|cry|person||place
lachen|lacht|gelacht|haben|laugh|person||place
frühstücken|frühstückt|gefrühstückt|haben|have had +breakfast|person||place with
ein.kaufen|kauft|eingekauft|haben|shop|person||place market with
fern.sehen|sieht|ferngesehen|haben|watch +television|person||with
auf.stehen|steht|aufgestanden|sein|get got gotten +up|person||manner
auf.wachen|wacht|aufgewacht|sein|wake woke woken +up|person,animal||
ein.schlafen|schläft|eingeschlafen|sein|fall fell fallen +asleep|person,animal||place
aus.ruhen sich|ruht|ausgeruht|haben|rest|person,animal||place
schwimmen|schwimmt|geschwommen|sein|swim swam swum +in|person,pet|in/dat:swim|with
gehen|geht|gegangen|sein|go went gone|person|dir|with
laufen|läuft|gelaufen|sein|run ran run|person,animal|dir|
fahren|fährt|gefahren|sein|drive drove driven|person|dir|with
reisen|reist|gereist|sein|travel|person|dir|town with
fliegen|fliegt|geflogen|sein|fly flew flown|person|dir|town with
um.ziehen|zieht|umgezogen|sein|move|person|dir|town with once
zurück.kommen|kommt|zurückgekommen|sein|come came come +back|person|from|
kommen|kommt|gekommen|sein|come came come|person|from|
an.kommen|kommt|angekommen|sein|arrive|person,transit|loc|at
bleiben|bleibt|geblieben|sein|stay|person|loc|with
wohnen|wohnt|gewohnt|haben|live|person|loc|simple with home
sitzen|sitzt|gesessen|haben|sit sat|person|on:dat|
liegen|liegt|gelegen|haben|lie lay lain|cat,dog,rabbit,text,clothes|on:dat|simple present
legen|legt|gelegt|haben|put put|person|acc:text,clothes,plate,knife,spoon,key,camera on:acc|
helfen|hilft|geholfen|haben|help|person|dat:person|place
danken|dankt|gedankt|haben|thank|person|dat:person|
folgen|folgt|gefolgt|sein|follow|person,animal|dat:person,animal|
antworten|antwortet|geantwortet|haben|answer|person|dat:person|manner
gratulieren|gratuliert|gratuliert|haben|congratulate|person|dat:person|
vertrauen|vertraut|vertraut|haben|trust|person|dat:person|simple present
gehören|gehört|gehört|haben|belong +to|goods,car,building,pet|dat:person|simple present
zu.hören|hört|zugehört|haben|listen +to|person|dat:person|
geben|gibt|gegeben|haben|give gave given|person|dat:person acc:goods,food,letter|
zeigen|zeigt|gezeigt|haben|show showed shown|person|dat:person acc:goods,text,car,building,animal|
schicken|schickt|geschickt|haben|send sent|person|dat:person acc:text,present,picture,flower|
bringen|bringt|gebracht|haben|bring brought|person|dat:person acc:food,drink,present,flower|
erzählen|erzählt|erzählt|haben|tell told|person|dat:person acc:tale,dream|
leihen|leiht|geliehen|haben|lend lent|person|dat:person acc:goods,car|
an.bieten|bietet|angeboten|haben|offer|person|dat:person acc:food,drink|
erklären|erklärt|erklärt|haben|explain|person|dat:person acc:puzzle,plan,game,idea|to
empfehlen|empfiehlt|empfohlen|haben|recommend|person|dat:person acc:text,film,restaurant,hotel|to
vor.lesen|liest|vorgelesen|haben|read read|person|dat:person acc:text|to
zurück.geben|gibt|zurückgegeben|haben|return|person|dat:person acc:goods,car|to
warten|wartet|gewartet|haben|wait +for|person|auf/acc:person,transit|place with
denken|denkt|gedacht|haben|think thought +of|person|an/acc:person,festivity,dream|
sprechen|spricht|gesprochen|haben|talk +to|person|mit/dat:person|place
träumen|träumt|geträumt|haben|dream +of|person|von/dat:person,animal,car,festivity|
lachen|lacht|gelacht|haben|laugh +at|person|über/acc:person,tale,film|
spielen|spielt|gespielt|haben|play +with|child,boy,girl,pet|mit/dat:child,boy,girl,pet,ball|place
auf.passen|passt|aufgepasst|haben|look +after|person|auf/acc:child,boy,girl,pet|place
teil.nehmen|nimmt|teilgenommen|haben|take took taken +part in|person|an/dat:game,party,trip|with
freuen sich|freut|gefreut|haben|look +forward to|person|auf/acc:festivity,present,film|
erinnern sich|erinnert|erinnert|haben|remember|person|an/acc:person,trip,tale|simple
kümmern sich|kümmert|gekümmert|haben|take took taken +care of|person|um/acc:person,pet|
fürchten sich|fürchtet|gefürchtet|haben|fear|person|vor/dat:bear,lion,fox,dog,boss|simple
regnen|regnet|geregnet|haben|rain|weather||place unwanted town
schneien|schneit|geschneit|haben|snow|weather||place unwanted town
"""

# Present and preterite of verbs whose forms follow no rule, and of "werden".
IRREGULAR_PRESENT = {
    "sein": "bin bist ist sind seid sind",
    "haben": "habe hast hat haben habt haben",
    "werden": "werde wirst wird werden werdet werden",
    "wissen": "weiß weißt weiß wissen wisst wissen",
    "mögen": "mag magst mag mögen mögt mögen",
    "können": "kann kannst kann können könnt können",
    "müssen": "muss musst muss müssen müsst müssen",
    "wollen": "will willst will wollen wollt wollen",
    "dürfen": "darf darfst darf dürfen dürft dürfen",
    "sollen": "soll sollst soll sollen sollt sollen",
    "möchten": "möchte möchtest möchte möchten möchtet möchten",
}
PRETERITE = {
    "sein": "war warst war waren wart waren",
    "haben": "hatte hattest hatte hatten hattet hatten",
    "können": "konnte konntest konnte konnten konntet konnten",
    "müssen": "musste musstest musste mussten musstet mussten",
    "wollen": "wollte wolltest wollte wollten wolltet wollten",
    "dürfen": "durfte durftest durfte durften durftet durften",
}
# German modal, the English for its present and for its past (if it is used here).
MODALS = (
    ("können", "can", "could"),
    ("müssen", "have to", "had to"),
    ("wollen", "want to", "wanted to"),
    ("dürfen", "be allowed to", "be allowed to"),
    ("sollen", "should", ""),
    ("möchten", "would like to", ""),
)

# Verbs that govern a clause: infinitive, 3rd person, participle, English.
CLAUSE_VERBS = {
    "dass": "glauben|glaubt|geglaubt|haben|believe hoffen|hofft|gehofft|haben|hope "
    "sagen|sagt|gesagt|haben|say,said denken|denkt|gedacht|haben|think,thought "
    "wissen|weiß|gewusst|haben|know,knew,known",
    "ob": "fragen|fragt|gefragt|haben|ask wissen|weiß|gewusst|haben|know,knew,known",
    "zu": "versuchen|versucht|versucht|haben|try hoffen|hofft|gehofft|haben|hope "
    "vergessen|vergisst|vergessen|haben|forget,forgot,forgotten planen|plant|geplant|haben|plan "
    "beschließen|beschließt|beschlossen|haben|decide versprechen|verspricht|versprochen|haben|promise",
}

NAMES = {
    "f": "Anna Maria Julia Sophie Lena Clara Emma Nina Laura Eva".split(),
    "m": "Paul Peter Martin Emil David Jakob Tom Oskar Simon Leo".split(),
}
CITIES = (
    ("Berlin", "Berlin"),
    ("Hamburg", "Hamburg"),
    ("München", "Munich"),
    ("Köln", "Cologne"),
    ("Wien", "Vienna"),
    ("Zürich", "Zurich"),
    ("Paris", "Paris"),
    ("London", "London"),
    ("Rom", "Rome"),
    ("Prag", "Prague"),
)
# German preposition of rest and of motion towards it, English one of rest.
PLACE_PREPOSITIONS = {
    **dict.fromkeys(
        "Haus Küche Zimmer Büro Garten Park Wald Bibliothek Museum Restaurant Kirche "
        "Krankenhaus Hotel Supermarkt Stadt Dorf".split(),
        ("in", "in", "in"),
    ),
    **dict.fromkeys("Schule Theater".split(), ("in", "in", "at")),
    **dict.fromkeys("Bahnhof Flughafen Universität".split(), ("an", "zu", "at")),
    "Strand": ("an", "an", "on"),
    "Insel": ("auf", "auf", "on"),
    "Berg": ("auf", "auf", "on"),
}
CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("an", "das"): "ans",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
    ("von", "dem"): "vom",
}

# nominative accusative dative | English subject object possessive | German possessive
PRONOUN_TABLE = {
    (1, "sg", ""): "ich mich mir I me my mein",
    (2, "sg", ""): "du dich dir you you your dein",
    (3, "sg", "m"): "er ihn ihm he him his sein",
    (3, "sg", "f"): "sie sie ihr she her her ihr",
    (1, "pl", ""): "wir uns uns we us our unser",
    (2, "pl", ""): "ihr euch euch you you your euer",
    (3, "pl", ""): "sie sie ihnen they them their ihr",
}
REFLEXIVES = {(1, "sg"): "mich", (2, "sg"): "dich", (1, "pl"): "uns", (2, "pl"): "euch"}

# Endings by case, in the order masculine, feminine, neuter, plural ("_": none).
DEFINITE = {"nom": "der die das die", "acc": "den die das die", "dat": "dem der dem den"}
RELATIVE = {"nom": "der die das die", "acc": "den die das die", "dat": "dem der dem denen"}
DER_WORD = {"nom": "er e es e", "acc": "en e es e", "dat": "em er em en"}
EIN_WORD = {"nom": "_ e _ e", "acc": "en e _ e", "dat": "em er em en"}
WEAK = {"nom": "e e e en", "acc": "en e e en", "dat": "en en en en"}
MIXED = {"nom": "er e es en", "acc": "en e es en", "dat": "en en en en"}
STRONG = {"nom": "er e es e", "acc": "en e es e", "dat": "em er em en"}
DER_WORDS = ("dies", "jed", "all", "welch")
EIN_WORDS = ("ein", "kein", "mein", "dein", "sein", "ihr", "unser", "euer")
STRONG_WORDS = ("viel", "wie viel", "einig")  # plural only; the adjective declines alike

# When it happens, by tense.
TIME_TABLE = {
    "past": "gestern=yesterday|vorgestern=the day before yesterday|gestern Abend=yesterday evening|"
    "heute Morgen=this morning|letzte Woche=last week|letzten Monat=last month|letztes Jahr=last year|"
    "am Montag=on Monday|am Freitag=on Friday|am Sonntag=on Sunday",
    "habitual": "jeden Tag=every day|jeden Morgen=every morning|jeden Abend=every evening|jede Woche=every week|"
    "am Wochenende=on the weekend|montags=on Mondays|sonntags=on Sundays|"
    "im Sommer=in summer|im Winter=in winter",
    "progressive": "jetzt=now",
    "future": "morgen=tomorrow|übermorgen=the day after tomorrow|heute Abend=this evening|nächste Woche=next week|"
    "nächsten Monat=next month|nächstes Jahr=next year|am Montag=on Monday|am Samstag=on Saturday|"
    "bald=soon",
    "modal": "heute=today|morgen=tomorrow|jetzt=now|am Montag=on Monday|nächste Woche=next week",
}
TIMES = {
    tense: tuple(tuple(entry.split("=")) for entry in table.split("|"))
    for tense, table in TIME_TABLE.items()
}
FREQUENCIES = (
    ("oft", "often"),
    ("immer", "always"),
    ("selten", "rarely"),
    ("nie", "never"),
    ("manchmal", "sometimes"),
    ("normalerweise", "usually"),
)
OPENING_FREQUENCIES = ("oft", "manchmal", "normalerweise")
MANNERS = (
    ("schnell", "quickly"),
    ("langsam", "slowly"),
    ("vorsichtig", "carefully"),
    ("leise", "quietly"),
    ("allein", "alone"),
)
DEGREES = (("sehr", "very"), ("zu", "too"), ("ziemlich", "quite"))
TIME_UNITS = (("Tagen", "days"), ("Wochen", "weeks"), ("Monaten", "months"), ("Jahren", "years"))

UNITS = (
    "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
ENGLISH_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
DOUBLING = ("swim", "run", "sit", "get", "put", "cut", "shop", "plan", "forget", "hug")
# Written vowels and consonants that mislead about the sound that follows "a".
AN_WORDS, A_WORDS = ("honest",), ("university", "useful")


def _add_s(word):
    """Add the -s of English plurals and of the third person singular."""
    if re.search(r"(s|sh|ch|x|z|o)$", word):
        return word + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + "s"


def _add_ed(word):
    if word in DOUBLING:
        word += word[-1]
    return re.sub(r"(?<=[^aeiou])y$", "i", word).removesuffix("e") + "ed"


def _add_ing(word):
    if word in DOUBLING:
        word += word[-1]
    return re.sub(r"(?<=[^eo])e$", "", re.sub(r"ie$", "y", word)) + "ing"


def indefinite_article(following):
    """Return "a" or "an", whichever the next English word asks for."""
    return (
        "an"
        if following in AN_WORDS or (following[0] in "aeiouAEIOU" and following not in A_WORDS)
        else "a"
    )


class Noun(NamedTuple):
    """A German common noun and its English translation."""

    lemma: str
    gender: str
    plural: str | None
    english: str
    english_plural: str
    tags: frozenset

    def german(self, case, number):
        """Return the German form for a case and a number."""
        if number == "pl":
            return self.plural + ("n" if case == "dat" and self.plural[-1] not in "ns" else "")
        return self.lemma if case == "nom" else WEAK_NOUNS.get(self.lemma, self.lemma)


class Adjective(NamedTuple):
    """A German adjective and its English translation."""

    lemma: str
    comparative: str | None
    english: str
    english_comparative: str
    tags: frozenset

    def german(self, ending):
        """Return the attributive form with the given ending."""
        return ADJECTIVE_STEMS.get(self.lemma, self.lemma.removesuffix("e")) + ending


@cache
def _paradigm(infinitive, third):
    """Return the six present forms (ich du er wir ihr sie) of a verb without prefix."""
    if infinitive in IRREGULAR_PRESENT:
        return IRREGULAR_PRESENT[infinitive].split()
    stem = re.sub(r"e?n$", "", infinitive)
    if third[-3:-1] in ("ss", "es", "is") or third[-2] in "sßz":
        second = third  # the -s- of -st merges with the stem's own
    else:
        second = third[:-1] + "st"
    needs_e = re.search(r"([td]|[^lrmnhaeiouäöü][mn]|ch[mn])$", stem)
    return [stem + "e", second, third, infinitive, stem + ("et" if needs_e else "t"), infinitive]


class Verb(NamedTuple):
    """A verb in one of its senses, with what it may be combined with."""

    prefix: str  # of a separable verb, else empty
    base: str  # the infinitive without that prefix
    third: str
    participle: str
    auxiliary: str
    english: str
    english_past: str
    english_participle: str
    particle: str  # as "on" in "turn it on": follows a pronoun, precedes a noun
    preposition: str  # follows the English verb at once, as "for" in "wait for"
    reflexive: bool
    subjects: frozenset
    complements: tuple  # pairs of a kind ("acc", "auf/acc", "dir") and a set of tags
    traits: frozenset

    @property
    def infinitive(self):
        """The citation form, prefix included."""
        return self.prefix + self.base

    @property
    def zu_infinitive(self):
        """The infinitive with "zu", which goes between prefix and stem."""
        return f"{self.prefix}zu{self.base}" if self.prefix else f"zu {self.base}"

    def german(self, person, number):
        """Return the finite present form, without the separable prefix."""
        return _paradigm(self.base, self.third)[person - 1 + 3 * (number == "pl")]

    def english_present(self, person, number):
        """Return the finite English present form."""
        if (person, number) != (3, "sg"):
            return self.english
        return "has" if self.english == "have" else _add_s(self.english)

    @property
    def english_ing(self):
        """The English present participle."""
        return _add_ing(self.english)


def finite(lemma, person, number, past=False):
    """Return a form of a modal or auxiliary verb of German."""
    forms = (PRETERITE if past else IRREGULAR_PRESENT)[lemma].split()
    return forms[person - 1 + 3 * (number == "pl")]


def english_be(person, number, past=False):
    """Return the form of "be" that agrees with a subject."""
    if past:
        return "was" if number == "sg" and person != 2 else "were"
    return {(1, "sg"): "am", (3, "sg"): "is"}.get((person, number), "are")


def german_predicate(verb, tense, modal, person, number):
    """Return the finite form, what closes the clause before it ("gekauft") and the separated prefix."""
    if tense in ("past", "perfect") and verb.base in PRETERITE:
        return finite(verb.base, person, number, past=True), "", ""
    if tense in ("past", "perfect"):
        return finite(verb.auxiliary, person, number), verb.participle, ""
    if tense == "future":
        return finite("werden", person, number), verb.infinitive, ""
    if tense in ("modal", "modal past"):
        return finite(modal[0], person, number, past=tense == "modal past"), verb.infinitive, ""
    return verb.german(person, number), "", verb.prefix


def english_predicate(verb, tense, modal, person, number):
    """Return the auxiliary (None if there is none), the finite verb without one, and the verb after one."""
    third = (person, number) == (3, "sg")
    if verb.english == "be" and tense != "future":
        return english_be(person, number, past=tense == "past"), "", ""
    if tense == "progressive":
        return english_be(person, number), "", verb.english_ing
    if tense == "perfect":
        return "has" if third else "have", "", verb.english_participle
    if tense == "past":
        return None, verb.english_past, verb.english
    if tense == "future":
        return "will", "", verb.english
    if tense in ("modal", "modal past", "liking"):
        english = "like to" if tense == "liking" else modal[1 + (tense == "modal past")]
        first, _, rest = english.partition(" ")
        after = f"{rest} {verb.english}".strip()
        if first in ("can", "could", "should", "would"):
            return first, "", after
        if first == "be":
            return english_be(person, number, past=tense == "modal past"), "", after
        base = "have" if first in ("have", "had") else first.removesuffix("ed")
        if tense != "modal past":
            first = "has" if third and base == "have" else _add_s(first) if third else first
        return None, f"{first} {after}", f"{base} {after}"
    return None, verb.english_present(person, number), verb.english


def numeral(value):
    """Return the German and English words for 2 to 99 and for the hundreds to 900."""
    tens, unit = divmod(value, 10)
    if value >= 100:
        return UNITS.split()[value // 100 - 1] + "hundert", ENGLISH_UNITS.split()[
            value // 100 - 1
        ] + " hundred"
    if value < 20:
        return UNITS.split()[value - 1], ENGLISH_UNITS.split()[value - 1]
    german, english = TENS.split()[tens - 2], ENGLISH_TENS.split()[tens - 2]
    if not unit:
        return german, english
    # "einundzwanzig", not "einsundzwanzig"
    german_unit = UNITS.split()[unit - 1].replace("eins", "ein")
    return f"{german_unit}und{german}", f"{english}-{ENGLISH_UNITS.split()[unit - 1]}"


def ending(table, case, gender, number):
    """Look an ending (or a form of the article) up in one of the tables above."""
    found = table[case].split()["mfn".index(gender) if number == "sg" else 3]
    return "" if found == "_" else found


def determiner(stem, case, gender, number):
    """Return the form of a German determiner, given by its stem ("d" is the article)."""
    if stem == "d":
        return ending(DEFINITE, case, gender, number)
    if stem in DER_WORDS:
        return stem + ending(DER_WORD, case, gender, number)
    if stem in STRONG_WORDS:
        return stem + ending(STRONG, case, gender, number)
    if stem in EIN_WORDS:
        suffix = ending(EIN_WORD, case, gender, number)
        return ("eur" if stem == "euer" and suffix else stem) + suffix
    return stem  # numerals, names in the genitive and the empty determiner


def adjective_ending(stem, case, gender, number):
    """Return the ending an adjective takes after the determiner with this stem."""
    if stem == "d" or stem in DER_WORDS:
        return ending(WEAK, case, gender, number)
    return ending(MIXED if stem in EIN_WORDS else STRONG, case, gender, number)


def contract(preposition, german):
    """Put a preposition before a noun phrase, contracting it with the article."""
    first, _, rest = german.partition(" ")
    merged = CONTRACTIONS.get((preposition, first))
    return f"{merged} {rest}" if merged and rest else f"{preposition} {german}"


def _read_nouns():
    block = ""
    for line in NOUN_TABLE.split("\n"):
        if line.startswith("["):
            block = line.strip("[]")
        elif line:
            lemma, gender, plural, english, *tags = line.split()
            english, _, irregular = english.partition("/")
            yield Noun(
                lemma,
                gender,
                None if plural == "-" else plural,
                english,
                irregular or _add_s(english),
                frozenset([block, english, *(tag.strip("+") for tag in tags)]),
            )


def _read_adjectives():
    for line in ADJECTIVE_TABLE.split("\n"):
        if line:
            lemma, comparative, english, compared, *tags = line.split()
            yield Adjective(
                lemma,
                None if comparative == "-" else comparative,
                english,
                f"more {english}" if compared == "+" else compared,
                frozenset(tags),
            )


def _read_verb(line):
    german, third, participle, auxiliary, english, *rest = line.split("|")
    subjects, complements, traits = rest if rest else ("person", "", "")
    german, _, reflexive = german.partition(" ")
    prefix, _, base = german.rpartition(".")
    english, _, preposition = english.partition(" +")
    english, _, particle = english.partition(" ~")
    principal = english.split()
    past = principal[1] if len(principal) > 1 else _add_ed(principal[0])
    frame = []
    for complement in complements.split():
        kind, _, tags = complement.partition(":")
        if kind == "on":
            kind = "on/" + tags
        frame.append((kind, frozenset(tags.split(","))))
    return Verb(
        prefix,
        base,
        third,
        participle,
        auxiliary,
        principal[0],
        past,
        principal[2] if len(principal) > 2 else past,
        particle,
        preposition,
        bool(reflexive),
        frozenset(subjects.split(",")),
        tuple(frame),
        frozenset(traits.split()),
    )


BE = Verb(
    "",
    "sein",
    "ist",
    "gewesen",
    "sein",
    "be",
    "was",
    "been",
    "",
    "",
    False,
    frozenset(),
    (),
    frozenset(),
)
COST = Verb(
    "",
    "kosten",
    "kostet",
    "gekostet",
    "haben",
    "cost",
    "cost",
    "cost",
    "",
    "",
    False,
    frozenset(),
    (),
    frozenset(),
)
PLEASE = Verb(
    "",
    "gefallen",
    "gefällt",
    "gefallen",
    "haben",
    "like",
    "liked",
    "liked",
    "",
    "",
    False,
    frozenset(),
    (),
    frozenset(),
)
NOUNS = tuple(_read_nouns())
ADJECTIVES = tuple(_read_adjectives())
VERBS = tuple(map(_read_verb, VERB_TABLE.strip().split("\n")))
MATRIX_VERBS = {
    kind: tuple(_read_verb(entry.replace(",", " ")) for entry in entries.split())
    for kind, entries in CLAUSE_VERBS.items()
}


@cache
def nouns_with(tags):
    """Return the nouns that carry at least one of a frozenset of tags."""
    return tuple(noun for noun in NOUNS if noun.tags & tags)


@cache
def adjectives_for(noun):
    """Return the adjectives that go with a noun."""
    return tuple(adjective for adjective in ADJECTIVES if adjective.tags & noun.tags)


@cache
def verbs_for(tags):
    """Return the verbs whose subject may be a noun with these tags."""
    return tuple(verb for verb in VERBS if verb.subjects & tags)
