"""Headers and footers of Project Gutenberg's files in their historical forms, around a book called TITLE by AUTHOR.

Their phrases are facts of the format; what they say at length is shortened.
"""

from __future__ import annotations

TITLE, AUTHOR = "The Lamp in the Valley", "Agnes Thorne"

_USE_2020 = """\
This ebook is for the use of anyone anywhere in the United States and
most other parts of the world at no cost and with almost no restrictions
whatsoever. You may copy it, give it away or re-use it under the terms
of the Project Gutenberg License included with this ebook or online
at www.gutenberg.org. If you are not located in the United States,
you will have to check the laws of the country where you are located
before using this eBook.
"""
_USE_2008 = """\
This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.  You may copy it, give it away or
re-use it under the terms of the Project Gutenberg License included
with this eBook or online at www.gutenberg.org
"""
_SMALL_PRINT = """\
**The Legal Small Print**


(Three Pages)

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?  You know: lawyers.
They tell us you might sue us if there is something wrong with
your copy of this etext, even if you got it for free from
someone other than us, and even if what's wrong is not our
fault.

*BEFORE!* YOU USE OR READ THIS ETEXT
By using or reading any part of this PROJECT GUTENBERG-tm
etext, you indicate that you understand, agree to and accept
this "Small Print!" statement.

LIMITED WARRANTY; DISCLAIMER OF DAMAGES
But for the "Right of Replacement or Refund" described below,
[1] the Project (and any other party you may receive this
etext from as a PROJECT GUTENBERG-tm etext) disclaims all
liability to you for damages, costs and expenses.

INDEMNITY
You will indemnify and hold the Project, its directors,
officers, members and agents harmless from all liability.

DISTRIBUTION UNDER "PROJECT GUTENBERG-tm"
You may distribute copies of this etext electronically, or by
disk, book or any other medium if:

[1]  Only give exact copies of it.  Among other things, this
     requires that you do not remove, alter or modify the
     etext or this "small print!" statement.

[2]  Honor the etext refund and replacement provisions of this
     "Small Print!" statement.

WHAT IF YOU *WANT* TO SEND MONEY EVEN IF YOU DON'T HAVE TO?
The Project gratefully accepts contributions in money, time,
scanning machines, OCR software, public domain etexts, royalty
free copyright licenses, and every other sort of contribution
you can think of.

"""
_OLD_PAGES = """\
Copyright laws are changing all over the world, be sure to check
the copyright laws for your country before posting these files!!

Please take a look at the important information in this header.
We encourage you to keep this file on your own disk, keeping an
electronic path open for the next readers.  Do not remove this.


**Welcome To The World of Free Plain Vanilla Electronic Texts**

**Etexts Readable By Both Humans and By Computers, Since 1971**

*These Etexts Prepared By Hundreds of Volunteers and Donations*

Information on contacting Project Gutenberg to get Etexts, and
further information is included below.  We need your donations.


The Lamp in the Valley

by Agnes Thorne

March, 1996  [Etext #471]


Corrected EDITIONS of our etexts get a new NUMBER, lampv11.txt.
VERSIONS based on separate sources get new LETTER, lampv10a.txt.

Please note:  neither this list nor its contents are final till
midnight of the last day of the month of any such announcement.
The official release date of all Project Gutenberg Etexts is at
Midnight, Central Time, of the last day of the stated month.

Information about Project Gutenberg (one page)

We produce about two million dollars for each hour we work.  The
fifty hours is one conservative estimate for how long it we take
to get any etext selected, entered, proofread, edited, copyright
searched and analyzed, the copyright letters written, etc.

The Goal of Project Gutenberg is to Give Away One Trillion Etext
Files by the December 31, 2001.  [10,000 x 100,000,000=Trillion]

All donations should be made to "Project Gutenberg/CMU": and are
tax deductible to the extent allowable by law ("CMU" is Carnegie-
Mellon University).

******
If you have an FTP program (or emulator), please
FTP directly to the Project Gutenberg archives:
[Mac users, do NOT point and click. . .type]

ftp uiarchive.cso.uiuc.edu
login:  anonymous
password:  your@login
cd etext/etext90 through /etext96
dir [to see files]
get or mget [to get files. . .set bin for zip files]
GET INDEX?00.GUT
for a list of books

***

"""
_FIELDS = """\

Title: The Lamp in the Valley
       or, a Winter's Errand

Author: Agnes Thorne

Release Date: March 3, 2004 [EBook #1471]

Language: English

Character set encoding: ASCII

"""

HEADERS = {
    "2020s": f"""\
The Project Gutenberg eBook of The Lamp in the Valley

{_USE_2020}
Title: The Lamp in the Valley

Author: Agnes Thorne

Release date: March 3, 2021 [eBook #61471]
                Most recently updated: October 18, 2024

Language: English

Credits: Ann Dee and the Online Distributed Proofreading Team at https://www.pgdp.net


*** START OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***
""",
    "2008": f"""\
The Project Gutenberg EBook of The Lamp in the Valley, by Agnes Thorne

{_USE_2008}
{_FIELDS}*** START OF THIS PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***
""",
    "2008, title on two lines": f"""\
Project Gutenberg's The Lamp in the Valley, by Agnes Thorne

{_USE_2008}
{_FIELDS}*** START OF THIS PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY, OR A
WINTER'S ERRAND ***
""",
    "2005, no blanks": f"""\
The Project Gutenberg eBook, The Lamp in the Valley, by Agnes Thorne


{_USE_2008}




{_FIELDS}

***START OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY***
""",
    "lower case": f"""\
the project gutenberg ebook of the lamp in the valley, by agnes thorne

{_USE_2008.lower()}
{_FIELDS}*** start of this project gutenberg ebook the lamp in the valley ***
""",
    "2003": """\
The Project Gutenberg EBook of The Lamp in the Valley, by Agnes Thorne
(#3 in our series by Agnes Thorne)

Copyright laws are changing all over the world. Be sure to check the
copyright laws for your country before downloading or redistributing
this or any other Project Gutenberg eBook.

This header should be the first thing seen when viewing this Project
Gutenberg file.  Please do not remove it.  Do not change or edit the
header without written permission.

Please read the "legal small print," and other information about the
eBook and Project Gutenberg at the bottom of this file.  Included is
important information about your specific rights and restrictions in
how the file may be used.


**Welcome To The World of Free Plain Vanilla Electronic Texts**

**eBooks Readable By Both Humans and By Computers, Since 1971**

*****These eBooks Were Prepared By Thousands of Volunteers!*****


Title: The Lamp in the Valley

Author: Agnes Thorne

Release Date: January, 2006 [EBook #9671]
[Yes, we are more than one year ahead of schedule]
[This file was first posted on October 14, 2003]

Edition: 10

Language: English

Character set encoding: ASCII

*** START OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***
""",
    "1996, small print": "***The Project Gutenberg Etext of The Lamp in the Valley***\n\n"
    + _OLD_PAGES
    + _SMALL_PRINT
    + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
    "2001, small print": "The Project Gutenberg Etext of The Lamp in the Valley, by Agnes Thorne\n#3 in our series\n\n"
    + _OLD_PAGES.replace("Etexts", "eBooks")
    + _SMALL_PRINT.replace("ETEXTS", "EBOOKS")
    + """[Portions of this eBook's header and trailer may be reprinted only
when distributed free of all fees.  Copyright (C) 2001, 2002 by
Michael S. Hart.  Project Gutenberg is a TradeMark and may not be
used in any sales of Project Gutenberg eBooks or other materials be
they hardware or software or any other related product without
express permission.]

*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*
""",
    "1994, a copyrighted edition": "This is the 100th Etext file presented by Project Gutenberg, and\n"
    "is presented in cooperation with World Library, Inc., from their\n"
    "Library of the Future and Shakespeare CDROMS.\n\n"
    + _OLD_PAGES
    + "***** SMALL PRINT! for COMPLETE SHAKESPEARE *****\n\n"
    + 'THIS ELECTRONIC VERSION OF THE ETEXT IS PROVIDED "AS IS".\n\n'
    + "****   SMALL PRINT! FOR __ COMPLETE SHAKESPEARE ****\n"
    + '["Small Print" V.12.08.93]\n\n'
    + "<<THIS ELECTRONIC VERSION OF THE COMPLETE WORKS IS COPYRIGHT 1990\n"
    + "BY WORLD LIBRARY, INC., AND IS PROVIDED BY PROJECT GUTENBERG\n"
    + "SERVICE THAT CHARGES FOR DOWNLOAD TIME OR FOR MEMBERSHIP.>>\n",
    "issued again": f"""\
The Project Gutenberg EBook of The Lamp in the Valley, by Agnes Thorne

{_USE_2008}
{_FIELDS}*** START OF THIS PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***


***The Project Gutenberg Etext of The Lamp in the Valley***

{_OLD_PAGES}{_SMALL_PRINT}*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*
""",
    "German": f"""\
The Project Gutenberg EBook of Die Lampe im Tal, by Agnes Thorne

{_USE_2008}
Title: Die Lampe im Tal

Author: Agnes Thorne

Release Date: September, 2005 [EBook #8871]

Edition: 10

Language: German

Character set encoding: ISO-8859-1

*** START OF THE PROJECT GUTENBERG EBOOK, DIE LAMPE IM TAL ***

This text has been derived from HTML files at "Projekt Gutenberg - DE"
(http://www.gutenberg2000.de/thorne/lampe/lampe.htm), prepared by
Gerd Bouillon.
""",
    "without a marker": f"""\
The Project Gutenberg EBook of The Lamp in the Valley, by Agnes Thorne

{_USE_2008}
{_FIELDS}
""",
    "2002, small print behind the work": """\
The Project Gutenberg Etext of The Lamp in the Valley, by Agnes Thorne
#3 in our series by Agnes Thorne

Copyright laws are changing all over the world, be sure to check
the laws for your country before redistributing these files!!!

Please take a look at the important information in this header.
We encourage you to keep this file on your own disk, keeping an
electronic path open for the next readers.

Please do not remove this.

This should be the first thing seen when anyone opens the book.
Do not change or edit it without written permission.  The words
are carefully chosen to provide users with the information they
need about what they can legally do with the texts.


**Welcome To The World of Free Plain Vanilla Electronic Texts**

**Etexts Readable By Both Humans and By Computers, Since 1971**

*These Etexts Are Prepared By Thousands of Volunteers!*

Information on contacting Project Gutenberg to get Etexts, and
further information is included below, including for donations.

The Project Gutenberg Literary Archive Foundation is a 501(c)(3)
organization with EIN [Employee Identification Number] 64-6221541


Title:  The Lamp in the Valley

Author:  Agnes Thorne

Release Date:  April, 2002  [Etext #3171]

The Project Gutenberg Etext of The Lamp in the Valley, by Agnes Thorne
*****This file should be named lampv10.txt or lampv10.zip******

Project Gutenberg Etexts are often created from several printed
editions, all of which are confirmed as Public Domain in the US
unless a copyright notice is included.

The "legal small print" and other information about this book
may now be found at the end of this file.  Please read this
important information, as it gives you specific rights and
tells you about restrictions in how the file may be used.
""",
    "Runeberg": """\
Project Runeberg publishes The Lamp in the Valley, by Agnes Thorne

This is Project Runeberg's electronic edition; see http://runeberg.org/lampan/
""",
    "Australia": """\
Project Gutenberg Australia


Title: The Lamp in the Valley
Author: Agnes Thorne
* A Project Gutenberg of Australia eBook *
eBook No.: 0601471.txt
Language: English
Date first posted: May 2006
Date most recently updated: May 2006

This eBook was produced by: Ann Dee

Project Gutenberg of Australia eBooks are created from printed editions
which are in the public domain in Australia, unless a copyright notice
is included. We do NOT keep any eBooks in compliance with a particular
paper edition.

Copyright laws are changing all over the world. Be sure to check the
copyright laws for your country before downloading or redistributing this
file.

This eBook is made available at no cost and with almost no restrictions
whatsoever. You may copy it, give it away or re-use it under the terms
of the Project Gutenberg of Australia License which may be viewed online at
http://gutenberg.net.au/licence.html

To contact Project Gutenberg of Australia go to http://gutenberg.net.au

""",
    "Canada": """\
* A Project Gutenberg Canada Ebook *

This ebook is made available at no cost and with very few
restrictions. These restrictions apply only if (1) you make
a change in the ebook (other than alteration for different
display devices), or (2) you are making commercial use of
the ebook. If either of these conditions applies, please
check gutenberg.ca/links/licence.html before proceeding.

This work is in the Canadian public domain, but may be
under copyright in some countries. If you live outside Canada,
check your country's copyright laws. IF THE BOOK IS UNDER
COPYRIGHT IN YOUR COUNTRY, DO NOT DOWNLOAD
OR REDISTRIBUTE THIS FILE.

Title: The Lamp in the Valley
Author: Thorne, Agnes (1861-1902)
Date of first publication: 1892
Edition used as base for this ebook: London: Field, 1892
Date first posted: 15 October 2010
Date last updated: 15 October 2010
Project Gutenberg Canada ebook #634

This ebook was produced by: Ann Dee
& the Online Distributed Proofreading Canada Team
at http://www.pgdpcanada.net

""",
}

LICENCE = """\
Updated editions will replace the previous one--the old editions
will be renamed.

Creating the works from public domain print editions means that no
one owns a United States copyright in these works, so the Foundation
(and you!) can copy and distribute it in the United States without
permission and without paying copyright royalties.

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK

Section 1.  General Terms of Use and Redistributing Project Gutenberg-tm
electronic works

1.E.1.  The following sentence, with active links to, or other immediate
access to, the full Project Gutenberg-tm License must appear prominently:

This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.

- You pay a fee of 20% of the gross profits you derive from the use
     of these works, calculated by the method you already use for
     your taxes.

Professor Michael S. Hart is the originator of the library of works
that could be freely shared with anyone.

This Web site includes information about Project Gutenberg-tm,
including how to make donations to the Project Gutenberg Literary
Archive Foundation, how to help produce our new eBooks, and how to
subscribe to our email newsletter to hear about new eBooks.
"""

FOOTERS = {
    "2020s": f"*** END OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***\n\n\n\n{LICENCE}",
    "2008": f"""\
End of the Project Gutenberg EBook of The Lamp in the Valley, by
Agnes Thorne

*** END OF THIS PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***

***** This file should be named 1471.txt or 1471.zip *****
This and all associated files of various formats will be found in:
        http://www.gutenberg.org/1/4/7/1471/

Produced by Ann Dee and Robert Fisk.

{LICENCE}""",
    "2005, no blanks": f"***END OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY***\n\n\n"
    f"******* This file should be named 1471-8.txt or 1471-8.zip *******\n\n\n{LICENCE}",
    "1996": "End of The Project Gutenberg Etext of The Lamp in the Valley\n",
    "of Project Gutenberg's": "End of Project Gutenberg's The Lamp in the Valley, by Agnes Thorne\n",
    "this is the end": "This is the end of the Project Gutenberg Etext of The Lamp in the Valley\n",
    "here ends": "Here ends the Project Gutenberg Etext of The Lamp in the Valley\n",
    "end of this etext": "End of this Etext of The Lamp in the Valley\n",
    "2003": """\
*** END OF THE PROJECT GUTENBERG EBOOK THE LAMP IN THE VALLEY ***

This file should be named lampv10.txt or lampv10.zip
Corrected EDITIONS of our eBooks get a new NUMBER, lampv11.txt

Project Gutenberg eBooks are often created from several printed
editions, all of which are confirmed as Public Domain in the US
unless a copyright notice is included.

Most people start at our Web sites at:
http://gutenberg.net or
http://promo.net/pg

Money should be paid to the:
"Project Gutenberg Literary Archive Foundation."

"""
    + _SMALL_PRINT
    + "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*\n",
    "German": "Ende dieses Projekt Gutenberg Etextes Die Lampe im Tal, von Agnes Thorne.\n\n"
    f"*** END OF THE PROJECT GUTENBERG EBOOK, DIE LAMPE IM TAL ***\n\n{LICENCE}",
    "German, alone": "Ende dieses Project Gutenberg Etextes Die Lampe im Tal, von Agnes Thorne\n",
    "French": "Fin de Project Gutenberg Etext La lampe dans la vallée, par Agnes Thorne\n",
    "lower case": "*** end of this project gutenberg ebook the lamp in the valley ***\n\n" + LICENCE,
    "a licence alone": LICENCE,
    "Australia": "Project Gutenberg Australia\n\nThis site is full of FREE ebooks - Project Gutenberg Australia\n",
    "Canada": "[End of _The Lamp in the Valley_ by Agnes Thorne]\n",
}

CREDITS = {
    "none": "",
    "pages": "E-text prepared by Ann Dee\n\n\n\nNote: Images of the original pages are available through\n"
    "      Internet Archive. See\n      https://archive.org/details/mill00field\n",
    "gallica": "Produced by Ann Dee\n\n(This file was produced from images generously made\n"
    "available by the Bibliothèque nationale de France)\n",
    "a page's mark": "<pre>\n\n</pre>\n",
    "produced by": "Produced by Ann Dee, Robert Fisk and the Online Distributed\n"
    "Proofreading Team at http://www.pgdp.net (This file was\nproduced from images generously made available by The\n"
    "Internet Archive)\n",
    "a name": "Produced by Ann Dee\n",
    "e-text": "E-text prepared by Ann Dee and Robert Fisk\n",
    "etext": "This etext was prepared by Ann Dee, Lafayette, Indiana, from the 1892\nField edition.\n",
    "transcribed": "Transcribed from the 1892 Field edition by Ann Dee, email ann@example.org\n",
    "several": "Produced by Ann Dee. HTML version by Robert Fisk.\n\n\n\n"
    "Note: Project Gutenberg also has an HTML version of this\n"
    "      file which includes the original illustrations.\n      See 1471-h.htm or 1471-h.zip:\n"
    "      (http://www.gutenberg.net/dirs/1/4/7/1471/1471-h.zip)\n",
}

FRONT_NOTES = {
    "none": "",
    "printed first": "Transcriber's Note:\n\n    This etext was produced from _Stories_ May 1955. Extensive\n"
    "    research did not uncover any evidence that the U.S. copyright on this publication\n    was renewed.\n",
    "printed first, and more": "Transcriber's Note:\n\n    This etext was produced from _Stories_ May 1955.\n\n"
    "    Minor spelling and typographical errors have been corrected.\n\n\n",
    "brackets": "[Transcriber's Note: The spelling of the original is retained.\n"
    "Footnotes [1] and [2] were moved to the end.]\n",
    "of an encoding": "[This text uses UTF-8 (Unicode) file encoding. If the apostrophes\n"
    "appear as garbage, use the Latin-1 version.\n\nIn the original, pages were numbered.]\n",
    "frame": "+------------------------------------------------------------+\n"
    "| Transcriber's Note:                                        |\n"
    "|                                                            |\n"
    "| Obvious typographical errors have been corrected.          |\n"
    "+------------------------------------------------------------+\n",
    "heading": "Transcriber's Notes\n\nInconsistent hyphenation in the original is preserved.\n\n"
    "Text in italics is enclosed by underscores.\n\n\n",
    "French": "Note du transcripteur: L'orthographe d'origine a été conservée et n'a pas\nété harmonisée.\n",
    "German": "Anmerkungen zur Transkription: Offensichtliche Druckfehler wurden\nkorrigiert.\n",
}

BACK_NOTES = {
    "none": "",
    "heading": 'Transcriber\'s Notes\n\nPage 12, "teh" changed to "the" (the lamp)\n\n'
    "Page 40, a missing comma has been added.\n",
    "brackets": "[Transcriber's Note: Three errors of the original were corrected.]\n",
    "frame": "       *       *       *       *       *\n\n"
    "+--------------------------------------------+\n| Transcriber's Note:                        |\n"
    "| Page 12: lampp corrected to lamp           |\n+--------------------------------------------+\n",
}

ADVERTISEMENTS = """\
NEW NOVELS.

BY THE SAME AUTHOR.

A Winter's Errand.  Crown 8vo, cloth gilt, 6s.

"A charming story."--_The Weekly Post_.

The Miller's Two Sons.  Second edition.  Crown 8vo, 3s. 6d.

FIELD & CO., Publishers, LONDON.
"""
