"""Codes of languages, by which the first folder of a dataset's name says its language: `FR/Theatre`, `fra/Theatre`.

A folder is a language only if its name is in this list: any other word of two or three letters (`web`, `law`) is none.
The metadata file may name languages by other codes.
"""

_TWO_LETTERS = """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja
    jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb
    nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so
    sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""  # ISO 639-1, and `sh`
_THREE_LETTERS = """
    aar abk afr aka amh ara arg asm ava ave aym aze bak bam bel ben bis bod bos bre bul cat ces cha che chu chv cor
    cos cre cym dan deu div dzo ell eng epo est eus ewe fao fas fij fin fra fry ful gla gle glg glv grn guj hat hau
    hbs heb her hin hmo hrv hun hye ibo ido iii iku ile ina ind ipk isl ita jav jpn kal kan kas kat kau kaz khm kik
    kin kir kom kon kor kua kur lao lat lav lim lin lit ltz lub lug mah mal mar mkd mlg mlt mon mri msa mya nau nav
    nbl nde ndo nep nld nno nob nor nya oci oji ori orm oss pan pli pol por pus que roh ron run rus sag san sin slk
    slv sme smo sna snd som sot spa sqi srd srp ssw sun swa swe tah tam tat tel tgk tgl tha tir ton tsn tso tuk tur
    twi uig ukr urd uzb ven vie vol wln wol xho yid yor zha zho zul
"""  # ISO 639-2/T for these
_BIBLIOGRAPHIC = """
    alb arm baq bur chi cze dut fre geo ger gre ice mac mao may per rum slo tib wel
"""  # ISO 639-2/B where it differs
_OTHERS = """
    ary arz ast bar ceb ckb crh csb dsb fil frr fur gsw hsb kab kok krl lad lij lmo mai mni nap nds nso pag pap pms
    prs sat scn sco sgs shi szl tet tpi tzm udm vec vep war wuu yue zgh zza
"""  # ISO 639-3: languages of large corpora that have no code of two letters
_CODES = frozenset(f"{_TWO_LETTERS} {_THREE_LETTERS} {_BIBLIOGRAPHIC} {_OTHERS}".split())


def language_of_code(name: str) -> str:
    """The code in lower case, empty if `name` is none."""
    return name.lower() if name.lower() in _CODES else ""
